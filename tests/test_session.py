"""The session: one object for all parts of a process, threads included, and another for each who begins one."""

import contextvars
import os
import threading

from segsweep.core.session import Session, begin, importing, session, thread


def test_where_none_was_begun_there_is_one_that_tells_nobody_and_stays():
    def alone() -> None:
        session().emit("text", text="nobody hears")
        assert session() is session()
        assert not session().stopping()
        assert (session().sweep, session().copier, session().restorer, session().pool) == (None,) * 4

    contextvars.Context().run(alone)


def test_events_carry_the_job_that_is_under_way():
    events = []
    here = begin(Session(sink=events.append))
    here.job = 3
    session().emit("epoch", epoch=1)
    session().emit("end", job=4)
    assert events == [{"kind": "epoch", "job": 3, "epoch": 1}, {"kind": "end", "job": 4}]


def test_a_thread_has_the_session_of_who_started_it_and_hears_of_a_stop():
    found = []

    def work() -> None:
        found.append(session())
        found.append(session().wait(20))

    begin(Session())
    started = thread(work)
    session().stop()
    started.join(20)
    assert found == [session(), True]


def test_who_begins_another_changes_nothing_for_threads_that_run():
    found, go_on = [], threading.Event()

    def work() -> None:
        go_on.wait(20)
        found.append(session())

    first = begin(Session())
    started = thread(work)
    begin(Session()).stop()
    go_on.set()
    started.join(20)
    assert found == [first]
    assert not first.stopping()


def test_who_forks_waits_until_a_thread_has_imported():
    """Else the child would have modules that are locked for ever."""
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        with importing():
            begun.set()
            done.wait(0.2)
            done.set()

    started = thread(work)
    begun.wait(20)
    if (child := os.fork()) == 0:
        with importing():
            os._exit(0 if done.is_set() else 1)
    assert done.is_set()
    assert os.waitpid(child, 0)[1] == 0
    started.join()
