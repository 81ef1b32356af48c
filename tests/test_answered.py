"""Records that the sweep's own process looks at: what is the answer at once, and what is left to a job."""

import pytest
import toy_task

from segsweep.config import components
from segsweep.config.compose import bare
from segsweep.config.schema import resolved
from segsweep.core import locks
from segsweep.plugins import _jobs
from segsweep.plugins._jobs import Job
from segsweep.runs.run import reused
from segsweep.sweeps.plan import Planner


@pytest.fixture
def finished(tmp_path, allow):
    allow("toy_task.*")
    cfg = toy_task.composed(tmp_path)
    return cfg, toy_task.do(cfg, tmp_path)


def test_a_whole_record_answers_and_one_that_is_worked_on_or_damaged_or_gone_does_not(finished):
    _, done = finished
    answer = reused(done.folder)
    assert (answer.status, answer.signature, answer.metrics) == ("reused", done.signature, done.metrics)
    with locks.lock(done.folder):
        assert reused(done.folder) is None  # and nobody waits
    last = done.folder / "last.pt"
    data = last.read_bytes()
    last.write_bytes(data[:-1])
    assert reused(done.folder) is None
    last.write_bytes(data)
    assert reused(done.folder)
    (done.folder / "result.json").unlink()
    assert reused(done.folder) is None


class Composed:
    """A composer of one configuration."""

    def __init__(self, cfg):
        self.cfg = cfg

    def own(self, overrides):
        own, choices = bare(self.cfg)
        return own, choices, resolved(own)

    def __call__(self, overrides):
        return self.cfg


def test_whatever_goes_wrong_in_answering_is_left_to_the_job(finished, tmp_path, monkeypatch):
    cfg, done = finished
    cfg.hydra.sweep.dir = str(tmp_path / "sweep")

    def made(**facts) -> Job:
        job = Job(0, [], tmp_path / "sweep" / "0", **facts)
        job.compose(Composed(cfg), Planner(tmp_path))
        return job

    job = made(quick=True)
    assert job.point.folder == done.folder
    assert job.result.return_value == done.objective
    assert job.config is None
    assert made().result is None  # where somebody wants to hear of each job
    with locks.lock(done.folder):
        assert made(quick=True).config is not None

    def denied(*given):
        raise locks.SegsweepError("not to be written")

    monkeypatch.setattr(_jobs, "from_record", denied)
    job = made(quick=True)
    assert job.result is None
    assert job.config is not None


def test_what_a_task_says_of_its_data_and_its_scores_is_known_by_the_task_and_by_what_it_goes_by(finished, monkeypatch):
    cfg = bare(finished[0])[0]
    known = components.inputs(cfg)
    assert known.startswith("toy_task.Line ")

    class Other(toy_task.Line):
        pass

    monkeypatch.setattr(toy_task, "Other", Other, raising=False)
    cfg.task._target_ = "toy_task.Other"
    assert components.inputs(cfg) != known
