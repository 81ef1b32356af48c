"""Rules that hold for all input, tried on drawn input (hypothesis): signatures, splits, metrics, durable writing.

The same input each time, so that nothing fails by chance; `make soak` draws other input. ~10 s in all."""

import itertools
import math
import os
import tempfile
from pathlib import Path

import medium
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from segsweep.core import artifacts
from segsweep.core.errors import DataError
from segsweep.core.signature import deciding, digest, signatures, without
from segsweep.segmentation.data.split import PARTS, ByPatient, BySlice, KFold
from segsweep.segmentation.metrics import SPEC, confusion, hd95, of_classes, per_patient

settings.register_profile(
    "rules",
    derandomize=not os.environ.get("SEGSWEEP_SOAK"),
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("rules")

LEAVES = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([-1.0, 0.0, 1.0, 0.5, 1e300]) | st.text(max_size=2)
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner), max_leaves=8
)
CONFIGS = st.dictionaries(st.sampled_from(["model", "optim", "batch_size", "epochs", "seed"]), VALUES, min_size=1)


def same(one, other) -> bool:
    """Whether two values are one by the rule: keys in any order, 1 is 1.0, and neither is true."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return not isinstance(other, dict | list) and one == other


def otherwise(value, draw):
    """The same value in another writing."""
    if isinstance(value, dict):
        return {key: otherwise(value[key], draw) for key in draw(st.permutations(list(value)))}
    if isinstance(value, list):
        return [otherwise(item, draw) for item in value]
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        return value
    return draw(st.sampled_from([int(value), float(value)]))


def signed(config: dict) -> dict[str, str]:
    return signatures(deciding(config, SPEC), {}, "data", "split", {}, "epochs")


@given(CONFIGS, CONFIGS, st.data())
def test_two_configurations_are_one_run_exactly_if_they_say_the_same(config, other, data):
    again = otherwise(config, data.draw)
    assert same(config, again)
    assert signed(again) == signed(config)
    assert (signed(config)["signature"] == signed(other)["signature"]) == same(config, other)


@given(CONFIGS, st.sampled_from(sorted(SPEC.neutral)))
def test_a_setting_at_rest_is_no_part_of_a_run_and_at_another_value_it_is(config, key):
    *path, last = key.split(".")
    group = {} if not path else {"data": {"name": 1}, path[0]: {"name": 1}}
    config |= group
    node = config[path[0]] if path else config
    plain = signed(config)
    node[last] = SPEC.neutral[key]
    assert signed(config) == plain
    node[last] = "something else"
    assert signed(config)["signature"] != plain["signature"]


@given(CONFIGS, st.integers(1, 9), st.integers(1, 9))
def test_runs_that_differ_in_their_length_alone_share_their_epochs_and_nothing_else(config, one, other):
    first, second = (signed(config | {"epochs": n}) for n in (one, other))
    assert first["trajectory"] == second["trajectory"]
    assert (first["signature"] == second["signature"]) == (one == other)


@given(CONFIGS, st.lists(st.sampled_from(["model", "optim.a", "optim.a.b", "seed"]), max_size=3))
def test_what_is_left_out_of_a_configuration_is_left_out_and_all_else_stays(config, keys):
    kept = without(config, tuple(keys))
    for key in {*config} - {key.partition(".")[0] for key in keys}:
        assert kept[key] == config[key]
    for key in keys:
        node = kept
        for part in key.split("."):
            node = node.get(part, {}) if isinstance(node, dict) else {}
        assert node in ({}, None) or not isinstance(config.get(key.partition(".")[0]), dict)
    assert digest(without(kept, tuple(keys))) == digest(kept)


PATIENTS = st.dictionaries(
    st.text("abc12", min_size=1, max_size=3),
    st.integers(1, 4).map(lambda n: [f"s{k}" for k in range(n)]),
    min_size=2,
    max_size=12,
)
SHARES = st.sampled_from([0.0, 0.1, 0.2, 0.3, 0.45])


def made(split, patients):
    try:
        return split(patients)
    except DataError:
        assume(False)


def everybody_is_in_one_part(found, patients) -> None:
    slices = sorted(index for part in PARTS for index in getattr(found, part).tolist())
    assert slices == list(range(sum(map(len, patients.values()))))
    of = [(patient, name) for patient, names in patients.items() for name in names]
    for part in PARTS:
        named = {(patient, name) for patient, names in found.names[part].items() for name in names}
        assert named == {of[index] for index in getattr(found, part)}
    owners = [set(found.names[part]) for part in PARTS]
    assert found.leaks == any(a & b for a, b in itertools.combinations(owners, 2))


@given(PATIENTS, SHARES, SHARES, st.integers(0, 5), st.data())
def test_by_patient_nobody_is_in_two_parts_and_everybody_in_one(patients, val, test, seed, data):
    assume(test > 0)
    found = made(ByPatient(val=val, test=test, seed=seed), patients)
    everybody_is_in_one_part(found, patients)
    assert not found.leaks
    turned = {name: patients[name] for name in data.draw(st.permutations(list(patients)))}
    assert {
        part: set(names) for part, names in made(ByPatient(val=val, test=test, seed=seed), turned).patients.items()
    } == {part: set(names) for part, names in found.patients.items()}


@given(PATIENTS, SHARES, SHARES, st.integers(0, 5))
def test_by_slice_every_slice_is_in_one_part_and_a_patient_in_two_is_told_as_leaking(patients, val, test, seed):
    assume(test > 0)
    everybody_is_in_one_part(made(BySlice(val=val, test=test, seed=seed), patients), patients)


@given(PATIENTS, st.integers(2, 5), SHARES, st.integers(0, 5))
def test_in_folds_everybody_is_tested_once(patients, folds, val, seed):
    assume(folds <= len(patients))
    found = [made(KFold(folds=folds, fold=k, val=val, seed=seed), patients) for k in range(folds)]
    for split in found:
        everybody_is_in_one_part(split, patients)
        assert not split.leaks
    tested = sorted(name for split in found for name in split.names["test"])
    assert tested == sorted(patients)


@st.composite
def predictions(draw, classes: int):
    """Maps of logits and truths (B, 1, 3, 3) of two patients' slices, VOID among the truths."""
    count = draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    truth = rng.choice([*range(max(classes, 2)), 255], size=(count, 1, 3, 3), p=None)
    if draw(st.booleans()):  # a class that is nowhere
        truth[truth == draw(st.integers(0, max(classes, 2) - 1))] = 0
    logits = rng.normal(size=(count, classes, 3, 3)) + draw(st.sampled_from([-2.0, 0.0, 2.0]))
    return (
        torch.tensor(logits, dtype=torch.float32),
        torch.tensor(truth, dtype=torch.uint8),
        torch.tensor(rng.integers(0, 2, count)),
    )


def ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom else 0.0


@given(predictions(1))
def test_scores_of_one_structure_are_those_of_its_pixels_counted_one_by_one(drawn):
    logits, truth, patient = drawn
    found = per_patient(confusion(logits, truth, patient, 2, void=True).numpy())
    for p in (0, 1):
        at = patient == p
        pairs = [
            (bool(x > 0), int(t)) for x, t in zip(logits[at].flatten(), truth[at].flatten(), strict=True) if t != 255
        ]
        tp = sum(said and t == 1 for said, t in pairs)
        fp, fn = sum(said and t == 0 for said, t in pairs), sum(not said and t == 1 for said, t in pairs)
        if not tp + fp + fn:
            assert all(math.isnan(found[name][p]) for name in ("dice", "iou", "precision", "recall"))
            continue
        assert found["dice"][p] == pytest.approx(ratio(2 * tp, 2 * tp + fp + fn))
        assert found["iou"][p] == pytest.approx(ratio(tp, tp + fp + fn))
        assert found["precision"][p] == pytest.approx(ratio(tp, tp + fp))
        assert found["recall"][p] == pytest.approx(ratio(tp, tp + fn))
        assert found["accuracy"][p] == pytest.approx(sum(said == t for said, t in pairs) / len(pairs))


@given(predictions(3))
def test_of_classes_each_is_scored_as_one_structure_against_all_others(drawn):
    logits, truth, patient = drawn
    counts = confusion(logits, truth, patient, 2).numpy()
    said = logits.argmax(1, keepdim=True)
    for k in (1, 2):
        alone = torch.where(truth == 255, truth, (truth == k).byte())
        single = confusion(torch.where(said == k, 1.0, -1.0), alone, patient, 2, void=True).numpy()
        assert of_classes(counts)[:, k - 1].tolist() == single.tolist()
    found = per_patient(counts, ["one", "two"])
    for p in (0, 1):
        both = [value for value in (found["dice/one"][p], found["dice/two"][p]) if not math.isnan(value)]
        assert found["dice"][p] == pytest.approx(np.mean(both), nan_ok=True) if both else math.isnan(found["dice"][p])


VOLUMES = st.integers(0, 2**16).map(lambda seed: np.random.default_rng(seed).random((2, 2, 4, 5)) < 0.3)


def surface(area: np.ndarray) -> list[tuple[int, ...]]:
    """Voxels with one of six neighbours outside, by looking at each."""
    inside = {tuple(int(i) for i in at) for at in np.argwhere(area)}
    steps = [tuple(s * (axis == k) for k in range(3)) for axis in range(3) for s in (1, -1)]
    return [
        at for at in inside if any(tuple(a + s for a, s in zip(at, step, strict=True)) not in inside for step in steps)
    ]


@given(VOLUMES, st.sampled_from([(1.0, 1.0, 1.0), (3.0, 0.5, 2.0)]))
def test_hd95_is_that_of_all_pairs_of_surface_voxels_and_the_same_either_way(drawn, spacing):
    truth, said = drawn
    assume(truth.any() and said.any())
    ends = [np.array(surface(area)) * spacing for area in (truth, said)]
    apart = np.sqrt(((ends[0][:, None] - ends[1][None]) ** 2).sum(-1))
    expected = max(np.percentile(apart.min(1), 95), np.percentile(apart.min(0), 95))
    assert hd95(truth, said, spacing) == pytest.approx(expected)
    assert hd95(said, truth, spacing) == pytest.approx(expected)


NAMES = st.sampled_from("abc")
WRITES = st.lists(
    st.tuples(st.just("one"), NAMES)
    | st.tuples(st.just("together"), st.permutations("abc"))
    | st.tuples(st.just("flush"), st.none()),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40)
@given(WRITES)
def test_whatever_is_written_durably_a_cut_leaves_each_file_whole_as_it_was_or_is(writes):
    """And as it is once its folder is flushed; of what is written together, what was named before the last."""
    with tempfile.TemporaryDirectory() as place, pytest.MonkeyPatch.context() as patch:
        root = Path(place)
        recorder = medium.Medium(root, patch)
        versions, kept = {name: [None] for name in "abc"}, dict.fromkeys("abc", 0)
        for number, (kind, of) in enumerate(writes):
            began = len(recorder.events)
            for name in of or ():
                versions[name].append(f"{number}{name}".encode())
            if kind == "one":
                artifacts.write_text(root / of, f"{number}{of}", durable=True)
            elif kind == "together":
                with artifacts.Together() as files:
                    for name in of:
                        artifacts.write_text(root / name, f"{number}{name}", files)
            else:
                artifacts.flush(root)
                recorder.events.append(("mark",))
            for cut in range(began + 1, len(recorder.events) + 1):
                over = cut == len(recorder.events) and kind == "flush"
                least = {name: len(versions[name]) - 1 if over else kept[name] for name in "abc"}
                for tree in recorder.left(cut):
                    for name in "abc":
                        assert tree.get(name) in versions[name][least[name] :], (writes, cut)
            if kind == "flush":
                kept = {name: len(versions[name]) - 1 for name in "abc"}
