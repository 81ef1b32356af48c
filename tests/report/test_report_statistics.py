"""The statistics against scipy, against sums done by hand, and against the truth of simulated patients."""

import itertools

import numpy as np
import pytest
from records import difficulties
from scipy import stats

from segsweep.report import statistics


def logistic(z):
    return 1 / (1 + np.exp(-z))


def test_interval_of_equal_values_has_no_width():
    assert statistics.mean_interval(np.full(8, 0.7))[:3] == pytest.approx((0.7, 0.7, 0.7))
    same = statistics.mean_interval(np.zeros(8), symmetric=True, bounds=(-1, 1))
    assert same[:3] == (0, 0, 0)  # the same predictions twice


def test_patients_who_all_score_zero_are_as_uncertain_as_those_who_nearly_do():
    none, one = (statistics.mean_interval(np.array([0.0] * 18 + [last]), bounds=(0, 1)) for last in (0.0, 1e-4))
    assert none[:2] == (0, 0)
    assert none.high == pytest.approx(np.sqrt(np.log(40) / 38), abs=1e-9)
    assert one.high == pytest.approx(none.high, abs=1e-3)
    assert statistics.mean_interval(np.full(8, 80.0), bounds=(0, np.inf))[:3] == (80, 80, 80)


@pytest.mark.parametrize("far", [np.inf, 1e300, 1e308])
def test_no_interval_has_an_infinite_end(far):
    values = np.array([0.1, 0.2, 0.3, 0.4, far, -far])
    for bounds in ((-np.inf, np.inf), (0, np.inf), (-np.inf, 0)):
        for symmetric in (False, True):
            found = statistics.mean_interval(values, symmetric=symmetric, bounds=bounds)
            assert found is None or np.isfinite(found[:3]).all()
    assert statistics.crossed_interval(np.outer([1, 0.5, 0.9], values)) is None


def test_interval_needs_five_patients_and_leaves_nan_out():
    assert statistics.mean_interval(np.array([0.1, 0.2, 0.3, 0.4, np.nan])) is None
    values = np.array([0.1, 0.2, 0.3, 0.4, 0.9])
    assert statistics.mean_interval(np.append(values, np.nan)) == statistics.mean_interval(values)


def test_interval_follows_its_definition():
    """The same resamples drawn out patient by patient, each with its own t."""
    values = np.random.default_rng(1).beta(8, 2, 12)
    ts = []
    for counts in statistics._resamples(12).astype(int):
        sample = np.repeat(values, counts)
        ts.append((sample.mean() - values.mean()) / (sample.std(ddof=1) / np.sqrt(12)))
    error = values.std(ddof=1) / np.sqrt(12)
    high, low = np.quantile(ts, [0.025, 0.975], method="inverted_cdf")
    assert statistics.mean_interval(values)[:3] == pytest.approx(
        (values.mean(), values.mean() - low * error, values.mean() - high * error)
    )
    widest = np.quantile(np.abs(ts), 0.95, method="inverted_cdf") * error
    assert statistics.mean_interval(values, symmetric=True)[1:3] == pytest.approx(
        (values.mean() - widest, values.mean() + widest)
    )


def test_interval_agrees_with_students_where_student_is_right():
    values = np.random.default_rng(2).normal(0.3, 0.1, 200)
    student = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    assert statistics.mean_interval(values)[1:3] == pytest.approx(student, abs=0.002)
    assert statistics.mean_interval(values, symmetric=True)[1:3] == pytest.approx(student, abs=0.002)


def test_interval_stays_within_bounds():
    values = np.array([1.0] * 9 + [0.05])
    interval = statistics.mean_interval(values, bounds=(0, 1))
    assert 0 <= interval.low < interval.mean < interval.high <= 1


def test_interval_of_a_dead_network_with_one_lucky_patient_is_not_everything():
    """t runs wild where one patient carries the spread; the distribution-free bound holds it."""
    values = np.array([0.0] * 15 + [1e-7, 1e-7, 2e-7, 0.006])
    interval = statistics.mean_interval(values, bounds=(0, 1))
    share = np.sqrt(np.log(40) / 38)  # the mass that Massart's inequality lets move: here all of it from patients at 0
    assert interval.low == 0
    assert interval.high == pytest.approx(share + values.mean())
    assert statistics.mean_interval(values).high > 1


def test_sign_flip_is_scipys_permutation_test():
    rng = np.random.default_rng(3)
    for n in (5, 8, 12):
        d = rng.normal(0.3, 1, n)
        whole = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf)
        assert statistics.sign_flip(d)[0] == pytest.approx(whole.pvalue)
    d = rng.normal(0.3, 1, 40)
    sampled = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=20_000, rng=rng)
    assert statistics.sign_flip(d)[0] == pytest.approx(sampled.pvalue, abs=0.01)


def test_sign_flip_by_hand():
    assert statistics.sign_flip(np.array([1.0, 2, 3, 4, 5]))[0] == 2 / 32  # only all plus and all minus are as far out
    assert statistics.sign_flip(np.ones(60))[0] == 1 / (statistics.FLIPS + 1)  # of random ones none, and the observed
    assert statistics.sign_flip(np.array([0.1, 0.1, 0.1, -0.3, 0.0]))[0] == 1  # the sum is 0: every flip is as far out
    both = np.array([[1.0, 1], [2, -2], [3, 3], [4, -4], [5, np.nan]])
    assert statistics.sign_flip(both) == pytest.approx([2 / 32, statistics.sign_flip(both[:4, 1])[0]])


def test_signed_rank_by_hand():
    assert statistics.signed_rank(np.array([0.1, 0.2, 0.3, 0.4, 0.5, np.nan])) == 2 / 32
    assert statistics.signed_rank(np.zeros(6)) == 1
    assert np.isnan(statistics.signed_rank(np.array([np.nan])))


def test_holm_by_hand():
    assert statistics.holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    adjusted = statistics.holm(np.array([0.5, np.nan, 0.7]))
    assert adjusted[[0, 2]] == pytest.approx([1, 1])
    assert np.isnan(adjusted[1])


def test_sign_flip_of_a_leader_by_hand():
    """Of two rows it is the sign-flip test; of three each flip's largest of all pairs counts."""
    scores = np.random.default_rng(3).normal(size=(3, 1, 9))
    scores[1] += 0.8
    two = statistics.sign_flip_leader(scores[:2], 1)
    assert np.isnan(two[1])
    assert two[0] == pytest.approx(statistics.sign_flip(scores[1, 0] - scores[0, 0])[0])
    flips = np.array(list(itertools.product([1, -1], repeat=9)))
    pairs = {(a, b): scores[a, 0] - scores[b, 0] for a, b in ((0, 1), (1, 2), (0, 2))}
    t = {k: np.abs(flips @ d) / np.sqrt((d**2).sum()) for k, d in pairs.items()}
    largest = np.max(list(t.values()), 0)
    expected = [np.mean(largest >= t[pair][0] - 1e-9) for pair in ((0, 1), (1, 2))]
    assert statistics.sign_flip_leader(scores, 1)[[0, 2]] == pytest.approx(expected)


def test_rows_that_are_equal_are_told_from_none():
    scores = np.tile(np.linspace(0.5, 0.9, 6), (3, 1, 1))
    assert statistics.sign_flip_leader(scores, 0)[1:].tolist() == [1, 1]


def test_all_flips_of_a_leader_are_formed_as_long_as_they_are_not_too_many(monkeypatch):
    scores = np.random.default_rng(5).normal(size=(3, 1, 9))
    whole = statistics.sign_flip_leader(scores, 1)[[0, 2]]
    monkeypatch.setattr(statistics, "FLIPPED", 3 * 2**8)  # three pairs, and every flip of nine units
    assert statistics.sign_flip_leader(scores, 1)[[0, 2]].tolist() == whole.tolist()
    monkeypatch.setattr(statistics, "FLIPPED", 3 * 2**8 - 1)
    drawn = 1000 * statistics.sign_flip_leader(scores, 1)[[0, 2]]  # 999 of them, and the observed one
    assert drawn == pytest.approx(np.round(drawn))
    assert drawn == pytest.approx(1000 * whole, abs=60)


def test_no_adjusted_p_is_above_one():
    assert statistics.holm(np.array([0.7, 0.9])).tolist() == [1, 1]


def test_holm_over_more_tests_than_are_shown():
    assert statistics.holm(np.array([0.01, 0.04]), 6) == pytest.approx([0.06, 0.2])


def test_crossed_interval_is_a_t_test_where_only_one_side_varies():
    patients, repeats = np.array([0.1, 0.3, -0.2, 0.4, 0.2, 0.5]), np.array([0.1, 0.3, -0.05])
    for table, one in ((np.tile(patients, (4, 1)), patients), (np.tile(repeats[:, None], (1, 7)), repeats)):
        test = stats.ttest_1samp(one, 0)
        got = statistics.crossed_interval(table)
        assert got.p == pytest.approx(test.pvalue)
        assert got[1:3] == pytest.approx(tuple(test.confidence_interval(0.95)))


def test_crossed_interval_by_hand():
    """Mean squares of a 3 x 5 table from sums over its cells."""
    d = np.array([[1, 2, 3, 4, 5], [2, 2, 4, 4, 6], [0, 3, 2, 5, 5]], float)
    grand = d.mean()
    ms_repeats = 5 * sum((row.mean() - grand) ** 2 for row in d) / 2
    ms_patients = 3 * sum((d[:, p].mean() - grand) ** 2 for p in range(5)) / 4
    rest = sum((d[r, p] - d[r].mean() - d[:, p].mean() + grand) ** 2 for r in range(3) for p in range(5)) / 8
    part = ms_patients - rest
    df = (ms_repeats + part) ** 2 / (ms_repeats**2 / 2 + part**2 / 4)
    half = stats.t.ppf(0.975, df) * np.sqrt((ms_repeats + part) / 15)
    assert statistics.crossed_interval(d)[:3] == pytest.approx((grand, grand - half, grand + half))


def test_crossed_interval_needs_three_repeats_of_five_patients():
    d = np.random.default_rng(4).normal(size=(3, 6))
    assert statistics.crossed_interval(d) is not None
    assert statistics.crossed_interval(d[:2]) is None
    d[0, :2] = np.nan  # two patients lack a repeat: four are left
    assert statistics.crossed_interval(d) is None


def test_pareto_front_by_hand():
    cost, value = np.array([1, 2, 3, 3, 4, np.nan]), np.array([0.5, 0.4, 0.7, 0.6, 0.7, 0.9])
    assert statistics.pareto(cost, value) == [0, 2]


def test_nanmean_of_nothing_is_nan_without_a_warning():
    assert np.isnan(statistics.nanmean(np.array([[np.nan, np.nan], [1, np.nan]]), 1)).tolist() == [True, False]


def coverage(intervals, truth):
    return np.mean([low <= truth <= high for _, low, high, _ in intervals])


def test_interval_of_a_mean_covers_the_truth():
    """Skewed Dice of 20 patients as published for LGG; the truth is the mean over a million of them."""
    rng = np.random.default_rng(5)
    truth = logistic(difficulties(rng, 1_000_000)).mean()
    samples = [logistic(difficulties(rng, 20)) for _ in range(2000)]
    assert 0.93 <= coverage([statistics.mean_interval(s, bounds=(0, 1)) for s in samples], truth) <= 0.97


@pytest.mark.parametrize("shift", [0.0, 0.5])
def test_interval_of_a_difference_covers_the_truth(shift):
    rng = np.random.default_rng(6)

    def difference(n):
        z = difficulties(rng, n)
        return logistic(z + shift + 0.3 * rng.standard_t(5, n)) - logistic(z + 0.3 * rng.standard_t(5, n))

    truth = difference(1_000_000).mean()
    samples = [statistics.mean_interval(difference(20), symmetric=True, bounds=(-1, 1)) for _ in range(2000)]
    assert 0.93 <= coverage(samples, truth) <= 0.97


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
def test_crossed_interval_covers_the_truth_under_training_noise(noise):
    """Three seeds, each of which shifts all patients: the interval over patients alone is right only without that
    noise.
    """
    rng = np.random.default_rng(7)

    def run(z):
        return logistic(z + noise * rng.standard_normal((3, 1)) + 0.3 * rng.standard_t(5, (3, len(z))))

    samples = []
    for _ in range(2000):
        z = difficulties(rng, 20)
        samples.append(run(z) - run(z))
    assert 0.925 <= coverage([statistics.crossed_interval(s) for s in samples], 0) <= 0.975
    if noise == 0.3:
        assert coverage([statistics.mean_interval(s.mean(0), symmetric=True) for s in samples[:500]], 0) < 0.7
