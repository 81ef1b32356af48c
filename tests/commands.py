"""The command `python -m segsweep` in a process of its own: start it, wait for what it does, read what it says."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def start(cwd: Path, *arguments: str, **options: Any) -> subprocess.Popen:
    """Both its streams in one; `cwd` is made where it is not there."""
    cwd.mkdir(exist_ok=True)
    merged = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    command = [sys.executable, "-m", "segsweep", *arguments, "paths.runs=multirun"]
    return subprocess.Popen(command, cwd=cwd, **merged | options)


def finish(process: subprocess.Popen, timeout: float = 280) -> str:
    return process.communicate(timeout=timeout)[0]


def until(what: Callable[[], Any], seconds: float = 240) -> Any:
    """What `what` gives, once it is true; for a machine that is busy with other work, too."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return found


def said(code: str) -> str:
    """What `code` prints in a Python of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def jobs(cwd: Path) -> dict[int, dict[str, Any]]:
    """job.json of the latest sweep, by number."""
    *_, latest = sorted(cwd.glob("multirun/2*"))
    return {job["number"]: job for job in (json.loads(file.read_text()) for file in latest.glob("*/job.json"))}


def openers(file: Path) -> list[int]:
    """Processes that have a file open: of a lock, who holds it and who waits for it."""
    inode, found = file.stat(), set()
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.path.samestat(entry.stat(), inode):
                found.add(int(entry.parts[2]))
        except OSError:  # it has ended, or is another user's
            continue
    return sorted(found)
