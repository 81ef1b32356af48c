"""Jobs for the launcher's tests, which train nothing: `+toy` in a job's configuration says what it does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig

from segsweep.core.session import session


def job(cfg: Any) -> float:
    folder = Path(HydraConfig.get().runtime.output_dir)
    (folder / "pid").write_text(str(os.getpid()))
    session().emit("start", name=cfg.toy)
    value = globals()[f"_{cfg.toy}"](cfg, folder)
    if value is None:
        session().emit("end", status="failed", error="the loss became nan", failure="nan")
        return float("nan")
    session().emit("end", status="finished", error=None, failure=None)
    return value


def _seed(cfg: Any, folder: Path) -> float:
    return float(cfg.seed)


def _threads(cfg: Any, folder: Path) -> float:
    return float(torch.get_num_threads())


def _pid(cfg: Any, folder: Path) -> float:
    return float(os.getpid())


def _slow(cfg: Any, folder: Path) -> float:
    time.sleep(1)
    return float(cfg.seed)


def _last(cfg: Any, folder: Path) -> float:
    """Begins to end when job 1 is there."""
    while not (folder.parent / "1" / "pid").exists():
        time.sleep(0.02)
    return _slow(cfg, folder)


def _hang(cfg: Any, folder: Path) -> float:
    """As a run does: go on until asked to stop."""
    while not session().stopping():
        time.sleep(0.02)
    raise KeyboardInterrupt


def _deaf(cfg: Any, folder: Path) -> float:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "child").write_text(str(child.pid))
    time.sleep(600)
    return 0.0


def _die(cfg: Any, folder: Path) -> float:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0.0


def _die_once(cfg: Any, folder: Path) -> float:
    if not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(cfg.seed)


def _fail_once(cfg: Any, folder: Path) -> float | None:
    """A failure that the worker survives."""
    if not (folder / "failed").exists():
        (folder / "failed").touch()
        return None
    return float(cfg.seed)


def _leave(cfg: Any, folder: Path) -> float:
    sys.exit(3)


def _print(cfg: Any, folder: Path) -> float:
    print("seen by the user")
    return 0.0
