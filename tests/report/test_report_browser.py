"""The report in a real browser: nothing broken, nothing asked of the network, no sideways scroll on a phone."""

import pytest
from browser import CHROMIUM, chromium
from test_report_page import big_sweep

from segsweep.report.files import write as build

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    root = tmp_path_factory.mktemp("multirun")
    return build([big_sweep(root)], root / "report")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


LAID_OUT = "document.querySelectorAll('section').forEach(s => s.style.contentVisibility = 'visible');"
OPENED = "document.querySelectorAll('details').forEach(d => d.open = true);"


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False), (400, True)])
def test_page_opens_clean_at_any_width_in_both_colours(page, report, width, dark):
    page.complaints.clear()
    page.open(report, width, dark=dark)
    page.evaluate(LAID_OUT + OPENED + "document.querySelectorAll('img').forEach(i => i.loading = 'eager')")
    assert page.evaluate(
        "Promise.all([...document.images].map(i => i.decode().then(() => true, () => false))).then(all =>"
        " all.every(Boolean))"
    )
    assert page.evaluate("document.images.length") > 20
    assert page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.body.scrollWidth") <= width
    assert (
        page.evaluate(
            "[...document.querySelectorAll('figure svg')].filter(s => s.getBoundingClientRect().width < 150).length"
        )
        == 0
    )
    assert page.complaints == []


def test_ink_differs_from_paper_in_both_colours(page, report):
    colours = []
    for dark in (False, True):
        page.open(report, dark=dark)
        colours.append(
            page.evaluate(
                "[getComputedStyle(document.querySelector('figure svg')).color,"
                " getComputedStyle(document.body).backgroundColor]"
            )
        )
    (light_ink, light_paper), (dark_ink, dark_paper) = colours
    assert light_paper == "rgb(255, 255, 255)"
    assert light_ink != dark_ink
    assert sum(map(int, light_ink[4:-1].split(","))) < 200
    assert sum(map(int, dark_ink[4:-1].split(","))) > 550
    assert dark_paper != light_paper


def test_table_sorts_by_value_and_back(page, report):
    page.open(report)
    column = """[...document.querySelectorAll('#results tbody tr')].map(r => Number(r.cells[9].dataset.sort))"""
    before = page.evaluate(column)
    page.evaluate("document.querySelectorAll('#results thead button')[9].click()")
    up = page.evaluate(column)
    assert up == sorted(before)
    page.evaluate("document.querySelectorAll('#results thead button')[9].click()")
    assert page.evaluate(column) == sorted(before, reverse=True)
    assert page.evaluate("document.querySelectorAll('#results thead th')[9].getAttribute('aria-sort')") == "descending"


def test_a_broken_page_would_be_noticed(page, tmp_path):
    """The checks above can fail."""
    broken = tmp_path / "broken.html"
    broken.write_text(
        '<!doctype html><meta name="viewport" content="width=device-width"><link rel="icon" href="data:,"><img'
        ' src="data:image/png;base64,AAAA"><img src="missing.png"><p style="width:'
        ' 900px">wide</p><script>console.error("no"); throw new Error("thrown")</script>',
        encoding="utf-8",
    )
    page.complaints.clear()
    page.open(broken, 400)
    assert page.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 2
    assert page.evaluate("document.documentElement.scrollWidth") > 400
    kinds = {complaint.split(":")[0] for complaint in page.complaints}
    assert {"console", "exception", "not loaded"} <= kinds
