"""Makes docs/images/report.png and mlflow_*.png again: a sweep on the phantom, its report, and MLflow's own UI.

    python docs/screenshots.py [--work FOLDER]   # FOLDER keeps the sweep, so that a second call takes only pictures

Needs Chromium. Only the phantom is ever shown.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
sys.path[:0] = [str(ROOT / "tests" / "report"), str(ROOT)]
from browser import Page, chromium  # noqa: E402

from segsweep.tracking.store import FACTORS, VIEW  # noqa: E402

SWEEP = ["model=unet,r2unet", "optim=sgd,adam", "seed=0,1,2", "epochs=8", "model.width=8", "augment=flips"]
SWEEP += ["data.patients=48", "split.test=0.4"]


def ui(work: Path) -> tuple[subprocess.Popen[bytes], str]:
    """MLflow's server over the store in `work` on a free port of this machine alone, and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    store = f"sqlite:///{work}/mlruns/mlflow.db"
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", store, "--host", "127.0.0.1"]
    quiet = subprocess.DEVNULL
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        [*command, "--port", str(port), "--workers", "1"], env=environment, stdout=quiet, stderr=quiet
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            ask(address, "experiments/search", {"max_results": 1})
            break
        except OSError:
            time.sleep(0.5)
    return server, address


def ask(address: str, method: str, body: dict) -> dict:
    request = urllib.request.Request(
        f"{address}/api/2.0/mlflow/{method}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def shoot(page: Page, name: str, colours: int = 128) -> None:
    """Take what the window shows, with a palette: a third of the size."""
    file = IMAGES / name
    page.screenshot(file)
    Image.open(file).convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1024:.0f} KB")


def mlflow(page: Page, address: str) -> None:
    """The runs table, the charts grouped by factor, the side-by-side comparison, and the sweep's own run."""
    text = "(document.body?.innerText ?? '')"
    runs = f"{address}/#/experiments/1/runs"

    def show(url: str, ready: str, height: int, width: int = 1600) -> None:
        page.open("about:blank")  # the UI's addresses differ after the #, which alone loads nothing anew
        page.open(url, width, height)
        page.until(ready)
        close = "[...document.querySelectorAll('button')].filter(b => /close/i.test(b.getAttribute('aria-label')))"
        page.evaluate(f"{close}.forEach(b => b.click())")  # the assistant's panel
        page.evaluate("new Promise(done => setTimeout(done, 4000))")  # charts and columns draw themselves in steps

    table = f"{text}.includes('r2unet') && {text}.includes('test/dice')"
    show(f"{runs}?viewStateShareKey={VIEW}", table, 620, 2000)
    shoot(page, "mlflow_runs.png")
    show(
        f"{runs}?viewStateShareKey={FACTORS}&compareRunsMode=CHART", "!!document.querySelector('.js-plotly-plot')", 900
    )
    shoot(page, "mlflow_charts.png")
    found = ask(address, "runs/search", {"experiment_ids": ["1"], "filter": "tags.signature LIKE '%'"})["runs"]
    of_seed_0 = [run["info"]["run_id"] for run in found if {"key": "seed", "value": "0"} in run["data"]["params"]]
    query = urllib.parse.urlencode({"runs": json.dumps(of_seed_0), "experiments": '["1"]'})
    side = f"{address}/#/compare-runs?{query}"
    show(side, f"{text}.includes('Comparing')", 1300)
    folded = (
        "[...document.querySelectorAll('button, [role=button]')].find(b => b.innerText.trim() === 'Visualizations')"
    )
    page.evaluate("document.querySelectorAll('[role=switch]').forEach(b => b.click())")  # show diff only
    page.evaluate(f"{folded}?.click(); new Promise(done => setTimeout(done, 1500))")
    shoot(page, "mlflow_compare.png")
    (parent,) = ask(address, "runs/search", {"experiment_ids": ["1"], "filter": "tags.sweep LIKE '%'"})["runs"]
    show(f"{runs}/{parent['info']['run_id']}", f"{text}.includes('finished runs in')", 620)
    shoot(page, "mlflow_sweep.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path)
    given = parser.parse_args().work
    with tempfile.TemporaryDirectory() as temporary:
        work = (given or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        if not list(work.glob("multirun/2*/report.html")):
            subprocess.run([sys.executable, "-m", "segsweep", "-m", *SWEEP], cwd=work, check=True)
        (report,) = work.glob("multirun/2*/report.html")
        IMAGES.mkdir(exist_ok=True)
        with chromium(Path(temporary) / "report") as page:
            page.open(report, 1280, 1500)
            shoot(page, "report.png", 64)
        server, address = ui(work)
        try:
            with chromium(Path(temporary) / "mlflow") as page:
                mlflow(page, address)
        finally:
            server.terminate()
            server.wait(30)


if __name__ == "__main__":
    main()
