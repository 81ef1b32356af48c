"""`python -m segsweep.export RUN`: the network as a torch.export program and as ONNX, held against the original.

The files hold the network alone, float32 slices that are already normalised to logits: a patient's statistics are over
all slices of the patient, which a graph that takes a batch cannot know. `model.json` beside them says how to make both.
"""

import argparse
import importlib.util
import io
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from segsweep.config.schema import engine
from segsweep.config.start import start
from segsweep.core import artifacts
from segsweep.core.errors import SegsweepError
from segsweep.core.program import typed
from segsweep.runs.find import REFERENCE, find
from segsweep.segmentation import windows
from segsweep.segmentation.data import cache
from segsweep.segmentation.data.batches import Batches
from segsweep.segmentation.trained import Trained, load

TOLERANCE = 1e-4
"""Largest difference of a logit, as a share of the largest logit (at least 1), that an export may have."""
WINDOWS = (
    "the network sees windows of a slice, padded with 0 where that is smaller: along n pixels windows of s pixels, "
    f"ceil((n - s) / ({windows.STEP:g} s)) + 1 of them, evenly from edge to edge; a pixel's logits are the mean over "
    "the windows that hold it, weighted by a Gaussian around the middle of standard deviation "
    f"{windows.SIGMA:g} s, at least {windows.LEAST:g}"
)
EXTRA = ("onnx", "onnxruntime", "onnxscript")


def slices(trained: Trained) -> tuple[torch.Tensor, str]:
    """Inputs (n, C, H, W) float32 to check with and what they are: the test patients' largest slices, or noise.

    Each is normalised by its own pixels: the record keeps one slice a patient."""
    try:
        with np.load(trained.folder / "overlays.npz", allow_pickle=False) as file:
            images = file["image"]
    except (OSError, ValueError, KeyError, EOFError):
        generator = torch.Generator().manual_seed(0)
        shape = (4, trained.channels, *seen(trained))
        return torch.randn(shape, generator=generator), "noise, for the record has no slices"
    known = np.stack([cache.statistics(image[None]) for image in images])
    shift, scale, clip = cache.normalisation(known, trained.config.data.normalise, images.dtype)
    count = len(images)
    names = [str(n) for n in range(count)]
    volumes = cache.Volumes(
        images=images,
        masks=np.zeros(images.shape[:3], np.uint8),
        patient=np.arange(count),
        patients=names,
        slices=names,
        shift=shift,
        scale=scale,
        clip=clip,
        digest="",
        key="",
    )
    ((x, _, _),) = Batches(volumes, np.arange(count), batch_size=count, device="cpu").epoch(seed=0)
    height, width = seen(trained)
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    what = "the middle of " if trained.patch else ""
    return x[..., top : top + height, left : left + width].contiguous(), f"{what}{count} slices of the run's test"


def seen(trained: Trained) -> tuple[int, int]:
    """Height and width of what the network sees."""
    height, width, _ = trained.info["data"]["image_shape"]
    return trained.patch or (height, width)


def to_program(model: nn.Module, x: torch.Tensor) -> torch.export.ExportedProgram:
    """The program of a network for any number of slices of x's channels, height and width."""
    example = x[:1].expand(2, -1, -1, -1).contiguous()  # a batch of 1 would be taken for a constant
    with torch.no_grad():
        return torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def to_onnx(program: torch.export.ExportedProgram, file: Path) -> None:
    """Write the program as ONNX: input `image`, output `logits`, first dimension free."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of operators of torchvision, which are not asked for
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own exporter
        graph = torch.onnx.export(program, dynamo=True, input_names=["image"], output_names=["logits"], verbose=False)
    assert graph is not None
    graph.save(str(file), external_data=False)


def difference(name: str, expected: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """Largest difference of the logits (n, C, H, W), and how many pixels change sides, or classes. Raises SegsweepError
    above the tolerance."""
    largest, allowed = float(np.abs(expected - found).max()), TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not largest <= allowed:
        raise SegsweepError(
            f"{name}: its logits differ from the network's by up to {largest:.3g}; allowed are {allowed:.3g}. "
            "It is not kept: report it with the versions of torch and onnxruntime"
        )
    return {"difference": largest, "allowed": allowed} | changes(expected, found)


def changes(expected: np.ndarray, found: np.ndarray) -> dict[str, int]:
    """How many pixels of the masks differ, of logits (n, C, H, W)."""
    one, other = (logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1) for logits in (expected, found))
    return {"changed_pixels": int((one != other).sum()), "pixels": one.size}


def export(trained: Trained, out: Path) -> tuple[dict[str, Any], torch.Tensor, np.ndarray]:
    """Write model.pt2, model.onnx and model.json into `out`; returns the checks, the slices and the original's logits.

    Raises SegsweepError where an export differs, or the packages for ONNX are missing (model.pt2 is then there)."""
    x, source = slices(trained)
    checks: dict[str, Any] = {}
    with torch.inference_mode():
        expected = trained.model(x).numpy()
    program = to_program(trained.model, x)
    with artifacts.atomic(out / "model.pt2") as partial:
        whole = io.BytesIO()  # torch's own writer ends the process on a full disk
        torch.export.save(program, whole)
        partial.write_bytes(whole.getbuffer())
        again = torch.export.load(partial).module()
        with torch.inference_mode():
            checks["model.pt2"] = difference("model.pt2", expected, again(x).numpy())
    print(_sentence(out / "model.pt2", checks["model.pt2"], source))
    missing = [package for package in EXTRA if importlib.util.find_spec(package) is None]
    if missing:
        raise SegsweepError(
            f"model.onnx: not written, for {', '.join(missing)} is not installed: "
            f"{sys.executable} -m pip install {' '.join(EXTRA)}"
        )
    import onnxruntime

    with artifacts.atomic(out / "model.onnx") as partial:
        to_onnx(program, partial)
        session = onnxruntime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
        found = np.concatenate(
            [session.run(["logits"], {"image": x[n : n + 3].numpy()})[0] for n in range(0, len(x), 3)]
        )
        checks["model.onnx"] = difference("model.onnx", expected, found)
    print(_sentence(out / "model.onnx", checks["model.onnx"], source))
    if trained.precision == "bf16":
        with torch.inference_mode(), trained.autocast(torch.device("cpu"))():
            own = trained.model(x.contiguous(memory_format=torch.channels_last)).float().numpy()
        changed = checks["bf16"] = changes(expected, own)
        print(
            f"The run computes in bf16, these files in float32: {changed['changed_pixels']} of {changed['pixels']} "
            "pixels of the masks differ"
        )
    artifacts.write_json(out / "model.json", about(trained) | {"checked_on": source, "tolerance": TOLERANCE} | checks)
    return checks, x, expected


def about(trained: Trained) -> dict[str, Any]:
    """What a user of the files must know."""
    (height, width), channels = seen(trained), trained.channels
    mode, kind = trained.config.data.normalise, trained.info["data"].get("name")
    how = {
        "zscore": "each channel less its mean, divided by its standard deviation, over all slices of the patient",
        "percentile": "each channel's 0.5 % and 99.5 % quantiles over all slices of the patient to 0 and 1, clipped",
        "unit": "divided by the largest value of the file's type, 255 or 65535",
    }
    count, named = trained.labels.outputs, dict(zip(trained.labels.names, trained.labels.values, strict=True))
    meaning = "the class of a pixel is the map with the largest" if named else "the structure is where they are above 0"
    region = "; 0 outside the region of interest, whose pixels alone are counted there" * bool(trained.labels.roi)
    classes = {"classes": ", ".join(f"{name} {value}" for name, value in named.items())} if named else {}
    return {
        "run": trained.signature,
        "weights": trained.weights,
        "epoch": trained.epoch,
        "data": kind,
        "input": f"image: float32 (batch, {channels}, {height}, {width}), area mean of the slice, then {how[mode]}"
        f"{region}",
        "output": f"logits: float32 (batch, {count}, {height}, {width}); {meaning}",
        **classes,
        **({"windows": WINDOWS} if trained.patch else {}),
        "versions": trained.info.get("versions"),
        "commit": trained.info.get("commit"),
    }


def _sentence(file: Path, check: dict[str, Any], source: str) -> str:
    return (
        f"{file}: largest difference of the logits {check['difference']:.2e} (allowed {check['allowed']:.2e}), "
        f"{check['changed_pixels']} of {check['pixels']} pixels change sides, on {source}"
    )


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 written and checked, 1 with a plain message where not."""
    start()
    parser = argparse.ArgumentParser(
        prog=typed("export"),
        description="Write a run's network as torch.export and ONNX, checked against the original.",
    )
    parser.add_argument("run", metavar="RUN", help=REFERENCE)
    parser.add_argument("--out", type=Path, help="folder to write to (default: outputs/export/<signature>)")
    parser.add_argument("--weights", choices=("last", "best"), help="default: those that the run's test describes")
    parser.add_argument("--runs", type=Path, default=Path("multirun"), help="folder of runs/ and the sweeps")
    parser.add_argument("--register", metavar="NAME", help="a new version of this model in MLflow's registry")
    options = parser.parse_args(arguments)
    try:
        folder, why = find(options.run, options.runs)
        trained = load(folder, options.weights)
        print(f"{why[0].upper()}{why[1:]}, {trained.weights} weights (epoch {trained.epoch})")
        out = options.out or Path("outputs") / "export" / trained.signature
        _, x, logits = export(trained, out)
        if options.register:
            from segsweep.tracking.registry import register

            # Noise: a patient's image does not belong in a registry.
            example = torch.randn(2, *x.shape[1:], generator=torch.Generator().manual_seed(0)).numpy()
            facts = {key: str(value) for key, value in about(trained).items() if isinstance(value, str | int)}
            experiment = engine(trained.config).tracking.experiment
            made = register(options.register, folder, out / "model.onnx", example, logits, facts, experiment)
            print(f"Registered as {made}: mlflow.pyfunc.load_model('{made}').predict(array)['logits']")
    except (SegsweepError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
