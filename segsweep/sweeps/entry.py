"""A job's own record in its sweep's folder, job.json: what was asked, by which process, and how it ended."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

from segsweep.core import artifacts
from segsweep.core.masks import masked

log = logging.getLogger(__name__)

ROOM = ".room"
"""File of a sweep's folder that holds nothing: its room is for the records of what fails when the disk is full."""


def entry(number: int, overrides: list[str]) -> dict[str, Any]:
    """The record of a job that begins."""
    job = {"number": number, "overrides": [masked(override) for override in overrides]}
    return job | {"status": "running", "started": artifacts.now(), "pid": os.getpid()}


def open_job(folder: Path, number: int, overrides: list[str]) -> dict[str, Any]:
    _keep(folder / "job.json", job := entry(number, overrides))
    return job


def close_job(folder: Path, job: dict[str, Any], outcome: Any, seconds: float) -> None:
    """`outcome`: a `run.Outcome`."""
    facts = {f.name: getattr(outcome, f.name) for f in dataclasses.fields(outcome)}
    run = facts.pop("folder")
    job |= facts | {"seconds": seconds, "class": facts.pop("failure")}
    job["run"] = os.path.relpath(run, folder) if run else None
    _keep(folder / "job.json", job)


def _keep(file: Path, job: dict[str, Any]) -> None:
    """Write job.json, on a full disk in the room that the sweep set aside; what cannot be written even so is said in
    the log, and the sweep goes on."""
    try:
        artifacts.write_json(file, job)
    except OSError:
        (file.parents[1] / ROOM).unlink(missing_ok=True)
        try:
            artifacts.write_json(file, job)
        except OSError as error:
            log.error("%s cannot be written: %s", file, error.strerror)


def interrupted(folder: Path) -> None:
    """Jobs of a sweep that was stopped, whose own process could not say so any more."""
    for path in folder.glob("*/job.json"):
        job = artifacts.read_json(path)
        if job and job["status"] == "running":
            _keep(path, job | {"status": "interrupted"})
