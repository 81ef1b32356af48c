"""What is called a contrast, what is not, and how often chance is taken for an effect."""

import itertools
import json

import numpy as np
import pytest
from records import PATIENTS, Spec, difficulties, factors, in_memory, simulate, write_sweep

from segsweep.report.comparison import compare
from segsweep.report.contrasts import Contrast, Pair, analyse
from segsweep.report.records import read
from segsweep.report.statistics import Interval


def analysed(specs):
    comparison = compare(in_memory(specs))
    return comparison, analyse(comparison)


def grid(rng, effect=0.0, noise=0.0, seeds=(0,), models=("unet", "r2unet"), optims=("sgd", "adam")):
    """Every model with every optimizer and seed; `effect` is Adam's, `noise` the luck of each training."""
    z = difficulties(rng)
    return [
        Spec(
            factors(model=m, optim=o, seed=s),
            simulate(rng, effect * (o == "adam") + noise * rng.standard_normal(), 0.3, z),
        )
        for m, o, s in itertools.product(models, optims, seeds)
    ]


def test_planted_effect_is_found_and_the_idle_factor_is_not():
    found = {"optim": 0, "model": 0}
    for seed in range(20):
        _, analysis = analysed(grid(np.random.default_rng(seed), effect=0.8, noise=0.05, seeds=(0, 1, 2)))
        for contrast in analysis.contrasts:
            found[contrast.factor] += contrast.verdict == "shown"
            if contrast.factor == "optim":
                assert (contrast.a, contrast.b, len(contrast.pairs), contrast.units, contrast.seeds) == (
                    "sgd",
                    "adam",
                    2,
                    20,
                    3,
                )
    assert found["optim"] >= 19
    assert found["model"] <= 2


@pytest.mark.slow
def test_null_effect_is_called_null_at_the_nominal_rate():
    """500 sweeps of two networks that differ in nothing: p is below 5 % in 5 % of them, within what 500 sweeps can
    tell.
    """
    tests = [analysed(grid(np.random.default_rng(seed), models=("unet",)))[1].contrasts[0] for seed in range(500)]
    rate = np.mean([t.p < 0.05 for t in tests])
    assert 0.031 <= rate <= 0.069  # 95 % of binomial(500, 0.05)
    assert np.mean([t.verdict != "none" for t in tests]) <= rate
    assert {t.verdict for t in tests} <= {"none", "trained"}  # one seed: never more than these trained networks


@pytest.mark.slow
def test_null_effect_under_training_noise_is_not_called_shown():
    """500 sweeps in which every training run has its luck: tested over patients alone chance would be taken for an
    effect far too often.
    """
    tests = [
        analysed(grid(np.random.default_rng(seed), noise=0.2, seeds=(0, 1, 2), models=("unet",)))[1].contrasts[0]
        for seed in range(500)
    ]
    assert np.mean([t.verdict == "shown" for t in tests]) <= 0.069
    assert np.mean([t.p < 0.05 for t in tests]) > 0.2  # so the second test is needed


@pytest.mark.slow
def test_family_of_contrasts_keeps_its_error_rate():
    """300 sweeps of 2 x 2 x 3 seeds without any effect: some contrast is claimed in 5 % of them at most."""
    claims = [
        any(c.verdict != "none" for c in analysed(grid(np.random.default_rng(seed), seeds=(0, 1, 2)))[1].contrasts)
        for seed in range(300)
    ]
    assert np.mean(claims) <= 0.075


@pytest.mark.slow
def test_interval_over_simulated_sweeps_covers_the_truth():
    """600 sweeps, Dice of each row and the contrast between the two, against the truth of the simulation."""
    rng = np.random.default_rng(1)
    z = difficulties(rng, 1_000_000)
    means = [float((1 / (1 + np.exp(-(z + e + 0.3 * rng.standard_t(5, len(z)))))).mean()) for e in (0, 0.5)]
    hits = {"row": [], "contrast": []}
    for seed in range(600):
        comparison, analysis = analysed(grid(np.random.default_rng(seed), effect=0.5, models=("unet",)))
        for i, row in enumerate(comparison.rows):
            interval = comparison.interval(i)
            hits["row"].append(interval.low <= means[row.factors["optim"] == "adam"] <= interval.high)
        interval, sign = analysis.contrasts[0].interval, 1 if analysis.contrasts[0].b == "adam" else -1
        hits["contrast"].append(interval.low <= sign * (means[1] - means[0]) <= interval.high)
    assert 0.93 <= np.mean(hits["row"]) <= 0.97
    assert 0.93 <= np.mean(hits["contrast"]) <= 0.97


def test_confounded_pair_is_never_a_contrast():
    """Random pieces of a grid of five factors, against a plain count of the differences."""
    rng = np.random.default_rng(2)
    levels = {
        "model": ["unet", "r2unet"],
        "optim": ["sgd", "adam"],
        "epochs": [5, 10],
        "optim_lr": [1e-4, 1e-3],
        "loss": ["bce", "dice"],
    }
    everything = list(itertools.product(*levels.values()))
    some = 0
    for _ in range(60):
        chosen = [everything[i] for i in rng.choice(len(everything), 6, replace=False)]
        comparison, analysis = analysed(
            [Spec(factors(**dict(zip(levels, values, strict=True))), simulate(rng)) for values in chosen]
        )
        keys = ["model", "optim", "epochs", "optim.lr", "loss"]
        clean = set()
        for contrast in analysis.contrasts:
            for pair in contrast.pairs:
                a, b = (comparison.rows[i].factors for i in (pair.a, pair.b))
                assert [k for k in keys if a[k] != b[k]] == [contrast.factor]
                clean.add(frozenset((pair.a, pair.b)))
        for a, b in itertools.combinations(range(6), 2):
            fa, fb = comparison.rows[a].factors, comparison.rows[b].factors
            if sum(fa[k] != fb[k] for k in keys) == 1:
                assert frozenset((a, b)) in clean
        for pair in analysis.confounded:
            assert len(pair.differs) > 1
            some += 1
    assert some > 50


def test_the_reports_sgd_against_adam_is_confounded_and_one_run_settles_it():
    base = Spec(factors(optim="sgd", epochs=5), dict.fromkeys(PATIENTS, 0.7), experiment="base_unet")
    other = Spec(factors(optim="adam", epochs=10), experiment="unet_config_1")
    _, analysis = analysed([base, other])
    assert analysis.contrasts == []
    (pair,) = analysis.confounded
    assert pair.differs == ["optim", "epochs"]
    assert pair.command == "python -m segsweep experiment=base_unet optim=adam optim.lr=0.001"
    settled = Spec(factors(optim="adam", epochs=5))
    _, analysis = analysed([base, other, settled])
    assert sorted(c.factor for c in analysis.contrasts) == ["epochs", "optim"]
    assert analysis.confounded == []


def test_settling_command_keeps_the_rest_and_all_seeds():
    a = [Spec(factors(model="r2unet", optim="adam", optim_lr=0.01, epochs=5, seed=s)) for s in (0, 1)]
    b = [Spec(factors(model="r2unet", optim="sgd", optim_lr=0.01, epochs=10, seed=s)) for s in (0, 1)]
    comparison, analysis = analysed(a + b)
    (pair,) = analysis.confounded
    words = pair.command.split()
    assert words[:4] == ["python", "-m", "segsweep", "-m"]
    assert "seed=0,1" in words
    assert "model=r2unet" in words
    settings = dict(word.split("=") for word in words[4:])
    kept, taken = comparison.rows[pair.a].factors, comparison.rows[pair.b].factors
    assert settings[pair.factor] == str(taken[pair.factor])
    assert settings["optim.lr"] == "0.01"
    assert settings.get("epochs", "5") == str(kept["epochs"]) or pair.factor == "epochs"


def test_keys_of_an_option_belong_to_it_but_shared_keys_do_not():
    _, analysis = analysed(
        [Spec(factors(optim="sgd")), Spec(factors(optim="adam"))]
    )  # momentum against betas: one choice
    assert [c.factor for c in analysis.contrasts] == ["optim"]
    _, analysis = analysed([Spec(factors(optim="sgd", optim_lr=0.1)), Spec(factors(optim="adam"))])
    assert analysis.contrasts == []
    assert analysis.confounded[0].differs == ["optim", "optim.lr"]
    _, analysis = analysed([Spec(factors()), Spec(factors() | {"optim.momentum": 0.5})])
    assert [c.factor for c in analysis.contrasts] == ["optim.momentum"]


def test_only_the_same_patients_are_compared():
    dice = {p: 0.5 + 0.02 * i for i, p in enumerate(PATIENTS)}
    better = {p: d + 0.01 * (i % 3) for i, (p, d) in enumerate(dice.items())}
    a = Spec(factors(), dict(list(dice.items())[:14]), split="same")
    b = Spec(factors(optim="adam"), dict(list(better.items())[6:]), split="same")
    _, analysis = analysed([a, b])
    (contrast,) = analysis.contrasts
    assert contrast.units == 8
    assert contrast.mean == pytest.approx(np.mean([0.01 * (i % 3) for i in range(6, 14)]))


def test_undefined_dice_takes_no_part():
    a, b = dict.fromkeys(PATIENTS, 0.5), dict.fromkeys(PATIENTS, 0.6)
    a["patient_00"] = float("nan")
    _, analysis = analysed([Spec(factors(), a), Spec(factors(optim="adam"), b)])
    assert analysis.contrasts[0].units == 19


def test_same_names_in_other_data_are_not_the_same_patients():
    _, analysis = analysed([Spec(factors(), data="a" * 16), Spec(factors(optim="adam"), data="b" * 16)])
    assert analysis.contrasts == []
    assert analysis.confounded[0].differs == ["optim", "content of the data"]
    assert analysis.confounded[0].command is None


def test_another_split_behind_equal_settings_is_a_difference():
    _, analysis = analysed([Spec(factors(), split="one"), Spec(factors(optim="adam"), split="two")])
    assert analysis.contrasts == []
    assert analysis.confounded[0].differs == ["optim", "content of the split"]


def test_runs_of_two_versions_of_the_program_are_no_contrast():
    _, analysis = analysed([Spec(factors()), Spec(factors(optim="adam"), code="e" * 16)])
    assert analysis.contrasts == []
    assert analysis.confounded[0].differs == ["optim", "version of the program"]
    assert analysis.confounded[0].command is None


def test_different_seeds_do_not_make_a_pair():
    _, analysis = analysed([Spec(factors(seed=0)), Spec(factors(optim="adam", seed=1))])
    assert analysis.contrasts == []
    assert analysis.confounded[0].differs == ["optim", "seed"]


def test_folds_are_joined_so_that_each_patient_counts_once():
    def folds(optim, gain):
        return [
            Spec(
                factors(optim=optim, split="kfold", split_folds=4) | {"split.fold": k},
                {p: 0.5 + 0.01 * i + gain for i, p in enumerate(PATIENTS) if i % 4 == k},
                split=f"fold {k}",
            )
            for k in range(4)
        ]

    comparison, analysis = analysed(folds("sgd", 0.0) + folds("adam", 0.1))
    assert len(comparison.rows) == 2
    assert [comparison.tested(i) for i in (0, 1)] == [20, 20]
    assert comparison.mean(1) == pytest.approx(np.mean([0.5 + 0.01 * i for i in range(20)]))
    (contrast,) = analysis.contrasts
    assert (contrast.units, contrast.mean) == (20, pytest.approx(0.1))


def test_rows_come_by_the_dice_of_all_their_patients_not_of_their_folds():
    """Folds of 5 and 15 patients: the mean of the two folds' means would put the other row first."""

    def folds(optim, small, large):
        parts = {0: dict.fromkeys(PATIENTS[:5], small), 1: dict.fromkeys(PATIENTS[5:], large)}
        split = {"split": "kfold", "split.folds": 2}
        return [Spec(factors(optim=optim) | split | {"split.fold": k}, d, split=f"f{k}") for k, d in parts.items()]

    comparison = compare(in_memory(folds("sgd", 0.9, 0.5) + folds("adam", 0.5, 0.65)))
    assert [row.factors["optim"] for row in comparison.rows] == ["adam", "sgd"]
    assert [comparison.mean(i) for i in (0, 1)] == pytest.approx([0.6125, 0.6])
    assert comparison.best["dice"][0].row == 0


def test_different_folds_share_no_patient():
    split = {"split": "kfold", "split.folds": 2}
    a = Spec(factors() | split | {"split.fold": 0}, dict.fromkeys(PATIENTS[:10], 0.5), split="f0")
    b = Spec(factors(optim="adam") | split | {"split.fold": 1}, dict.fromkeys(PATIENTS[10:], 0.9), split="f1")
    _, analysis = analysed([a, b])
    assert analysis.contrasts == []
    assert analysis.confounded[0].differs == ["optim", "split.fold"]


def test_repeats_are_averaged_within_a_patient_before_anything_else():
    """Two seeds do not double the patients: the interval of two equal seeds is that of one."""
    rng = np.random.default_rng(3)
    dice = simulate(rng)
    one = compare(in_memory([Spec(factors(seed=0), dice)]))
    two = compare(in_memory([Spec(factors(seed=s), dice) for s in (0, 1)]))
    assert two.interval(0)[:3] == pytest.approx(one.interval(0)[:3])


def test_best_is_marked_only_where_the_test_allows():
    rng = np.random.default_rng(4)
    z = difficulties(rng)
    same = [Spec(factors(epochs=e), simulate(rng, 0, 0.3, z)) for e in (5, 6, 7)]
    (best,) = compare(in_memory(same)).best["dice"]
    assert len(best.tied) == 2
    clear = [*same, Spec(factors(epochs=8), simulate(rng, 1.5, 0.3, z))]
    comparison = compare(in_memory(clear))
    (best,) = comparison.best["dice"]
    assert (comparison.rows[best.row].factors["epochs"], best.tied, best.rivals, best.repeats) == (8, [], 3, False)


def test_leader_by_easier_patients_is_not_called_better_on_the_patients_that_both_have():
    """One fold of easy patients lifts a mean; where both were tested the other row is ahead."""
    few = {f"p{i:02}": 0.70 + 0.001 * i for i in range(10)}
    specs = [
        Spec(factors(), few | {f"q{i:02}": 0.99 for i in range(20)}),
        Spec(factors(optim="adam"), {patient: dice + 0.1 for patient, dice in few.items()}),
    ]
    comparison = compare(in_memory(specs))
    (best,) = comparison.best["dice"]
    assert (comparison.rows[best.row].factors["optim"], best.tied) == ("sgd", [1])


@pytest.mark.slow
@pytest.mark.parametrize("rows", [3, 6, 12])
def test_leader_of_equal_rows_is_told_from_none_of_them_at_the_nominal_rate(rows):
    """The leader is picked by its score, so tests against it alone are of picked differences."""
    told = []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        z = difficulties(rng)
        specs = [Spec(factors(epochs=1 + i), simulate(rng, difficulty=z)) for i in range(rows)]
        (best,) = compare(in_memory(specs)).best["dice"]
        told.append(len(best.tied) < best.rivals)
    assert np.mean(told) <= 0.077  # 97.5 % of binomial(300, 0.05)


def test_rows_that_share_a_training_are_no_repeats_of_one_another():
    """Four of SGD against the one of Adam: how far another training of Adam would move is not in them."""
    rng = np.random.default_rng(1)
    z = difficulties(rng)
    specs = [Spec(factors(optim="adam"), simulate(rng, 0.5, difficulty=z))]
    specs += [Spec(factors(optim_momentum=m), simulate(rng, 0.0, 0.05, z)) for m in (0.0, 0.5, 0.9, 0.95)]
    contrast = next(c for c in analysed(specs)[1].contrasts if c.factor == "optim")
    assert (len(contrast.pairs), contrast.over_repeats, contrast.verdict) == (4, None, "trained")


def test_repeats_that_point_the_other_way_do_not_bear_a_difference_out():
    """The pairs with most seeds are the test over repeats; here they are against what all pairs say together."""
    rng = np.random.default_rng(2)
    base = {p: 0.6 + 0.01 * rng.standard_normal() for p in PATIENTS}

    def plus(shift):
        return {p: dice + shift + 0.002 * rng.standard_normal() for p, dice in base.items()}

    specs = [Spec(factors(optim=o, seed=s), plus(-0.05 * (o == "adam"))) for o in ("sgd", "adam") for s in (0, 1, 2)]
    specs += [Spec(factors(optim=o, epochs=e), plus(0.1 * (o == "adam"))) for o in ("sgd", "adam") for e in (6, 7, 8)]
    contrast = next(c for c in analysed(specs)[1].contrasts if c.factor == "optim")
    assert contrast.mean > 0 > contrast.over_repeats.mean
    assert contrast.p_repeats_holm < 0.05
    assert contrast.verdict == "chance"


@pytest.mark.parametrize(
    ("low", "high", "p", "over", "again", "verdict"),
    [
        (0.1, 0.5, 0.05, 0.3, 0.01, "none"),  # below the level alone counts
        (0.1, 0.5, 0.06, 0.3, 0.01, "none"),
        (-0.1, 0.5, 0.04, 0.3, 0.01, "none"),
        (0.1, 0.5, 0.04, None, 0.01, "trained"),
        (0.1, 0.5, 0.04, 0.3, 0.04, "shown"),
        (0.1, 0.5, 0.04, 0.3, 0.05, "chance"),
        (0.1, 0.5, 0.04, -0.3, 0.04, "chance"),
        (-0.5, -0.1, 0.04, -0.3, 0.04, "shown"),
    ],
)
def test_a_verdict_needs_the_interval_and_the_test_and_then_the_repeats(low, high, p, over, again, verdict):
    mean = (low + high) / 2
    contrast = Contrast(
        "optim", "sgd", "adam", [Pair(0, 1, 3, np.array([mean]))], np.array([mean]), Interval(mean, low, high), p, p,
        None if over is None else Interval(over, over, over), "seeds", p_holm=p, p_repeats_holm=again,
    )  # fmt: skip
    assert contrast.verdict == verdict


def test_without_a_run_nothing_is_compared():
    _, analysis = analysed([])
    assert (analysis.contrasts, analysis.confounded, analysis.unpaired) == ([], [], 0)


def test_two_that_differ_in_one_factor_and_share_no_unit_are_counted_and_not_called_confounded():
    halves = [dict.fromkeys(some, 0.5) for some in (PATIENTS[:10], PATIENTS[10:])]
    _, analysis = analysed([Spec(factors(), halves[0], split="s"), Spec(factors(optim="adam"), halves[1], split="s")])
    assert (analysis.contrasts, analysis.confounded, analysis.unpaired) == ([], [], 1)


def test_of_the_rows_that_two_levels_have_the_two_that_differ_least_are_named():
    far, near = factors(optim="adam", epochs=10, loss="dice"), factors(optim="adam", epochs=10)
    dice = [dict.fromkeys(PATIENTS, d) for d in (0.9, 0.8, 0.7)]
    for specs in ([factors(), far, near], [factors(), near, far], [near, far, factors()]):
        _, analysis = analysed([Spec(f, d) for f, d in zip(specs, dice, strict=True)])
        assert [pair.differs for pair in analysis.confounded if pair.factor == "optim"] == [["optim", "epochs"]]


def test_a_key_that_an_option_has_is_a_factor_of_its_own_whatever_its_value():
    """As here the value of another key, the first of all."""
    rows = [factors(optim="sgd") | {"optim.kind": "unet"}, factors(optim="adam") | {"optim.kind": "other"}]
    _, analysis = analysed([Spec(row) for row in rows])
    assert analysis.contrasts == []
    assert analysis.confounded[0].differs == ["optim", "optim.kind"]


def test_a_setting_that_one_record_lacks_is_a_difference():
    _, analysis = analysed([Spec(factors()), Spec(factors() | {"clip_norm": 0.5})])
    assert [(c.factor, c.a, c.b) for c in analysis.contrasts] == [("clip_norm", "0.5", "not recorded")]


def test_a_number_comes_before_none():
    _, analysis = analysed([Spec(factors() | {"clip_norm": value}) for value in (None, 0.5)])
    assert [(c.a, c.b) for c in analysis.contrasts] == [("0.5", "none")]


def test_no_end_of_an_interval_over_repeats_is_beyond_what_two_scores_can_differ_by():
    dice = {"sgd": (0.0, 0.0, 0.9), "adam": (1.0, 1.0, 1.0)}
    specs = [
        Spec(factors(optim=o, seed=s), {p: min(d + 0.001 * i, 1) for i, p in enumerate(PATIENTS)})
        for o, values in dice.items()
        for s, d in enumerate(values)
    ]
    (contrast,) = analysed(specs)[1].contrasts
    assert -1 <= contrast.over_repeats.low < contrast.over_repeats.high == 1


def test_pairs_that_share_no_training_are_repeats_where_there_are_no_seeds():
    rng = np.random.default_rng(8)
    specs = [
        Spec(factors(optim=o, epochs=e), simulate(rng, 0.5 * (o == "adam"))) for o in ("sgd", "adam") for e in (5, 6, 7)
    ]
    contrast = next(c for c in analysed(specs)[1].contrasts if c.factor == "optim")
    assert (len(contrast.pairs), contrast.repeats) == (3, "pairs")


def test_leaking_rows_are_never_ranked_with_the_others():
    rng = np.random.default_rng(5)
    specs = [
        Spec(factors(), simulate(rng)),
        Spec(factors(optim="adam"), simulate(rng)),
        Spec(factors(split="slice"), simulate(rng, 3.0)),
    ]
    comparison = compare(in_memory(specs))
    assert [row.leaks for row in comparison.rows] == [False, False, True]
    (best,) = comparison.best["dice"]
    assert best.rivals == 1


def test_searched_range_is_not_taken_apart_into_pairs():
    rng = np.random.default_rng(6)
    _, analysis = analysed([Spec(factors(optim_lr=float(10 ** rng.uniform(-5, -1))), simulate(rng)) for _ in range(30)])
    assert (analysis.contrasts, analysis.continuous) == ([], ["optim.lr"])


def test_interval_of_a_short_search_is_not_taken_apart_into_pairs(tmp_path):
    """As few values as a grid might have; the sweep's record says that they were drawn."""
    rng = np.random.default_rng(7)
    specs = [Spec(factors(optim_lr=float(10 ** rng.uniform(-5, -1))), simulate(rng)) for _ in range(5)]
    sweep = write_sweep(tmp_path, "s", specs)
    about = json.loads((sweep / "sweep.json").read_text())
    space = {"optim.lr": "FloatDistribution(high=0.1, log=True, low=1e-05, step=None)", "model": "Categorical..."}
    (sweep / "sweep.json").write_text(json.dumps(about | {"search": {"space": space}}))
    analysis = analyse(compare(read([sweep])))
    assert (analysis.contrasts, analysis.confounded, analysis.continuous) == ([], [], ["optim.lr"])
