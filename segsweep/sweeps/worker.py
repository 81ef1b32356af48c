"""A worker: one process that runs one job after another for a launcher, and the launcher's handle on it.

It is a plain subprocess in a process group of its own, not a daemon of multiprocessing: a terminal's Ctrl-C does not
reach it, it may start processes itself, and it ends with whatever becomes of its parent.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import gc
import io
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from segsweep.core import child
from segsweep.core.session import Session, Sink, begin, session, thread

STOP = b"stop"
STEPS_A_SECOND = 10


class Worker:
    """The parent's end. `process`, and `connection`: readable when a message waits or the worker is gone."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.output = tempfile.TemporaryFile()  # noqa: SIM115 - what the worker's libraries print, for a crash's record
        with theirs:
            self.process = subprocess.Popen(
                child.command(
                    "from segsweep.sweeps import worker; worker.main()", str(theirs.fileno()), str(os.getpid())
                ),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self.connection = Connection(ours.detach())
        self.ready = self.ended = False

    def send(self, message: Any) -> None:
        """A pickled message, or STOP. To a worker that is gone it is not sent: reading from it tells."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(message if isinstance(message, bytes) else pickle.dumps(message))

    def receive(self) -> Any:
        """The next message; EOFError or OSError where the worker is gone."""
        return pickle.loads(self.connection.recv_bytes())

    def kill(self) -> None:
        """End it and what it started, now."""
        if self.ended:
            return
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for _ in range(100):  # what it had forked has its locks until it is gone
            try:
                os.killpg(self.process.pid, 0)
            except OSError:
                break
            time.sleep(0.01)
        self.ended = True
        self.connection.close()
        self.output.close()

    def death(self) -> str:
        """How a worker that is gone ended, with the last that it printed."""
        code = self.process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.output.seek(0)
        said = self.output.read().decode(errors="replace").strip()[-2000:]
        return f"the worker process ended with {how}" + (f"\n{said}" if said else "")


class Pool:
    """The workers of this process; none of them outlives it."""

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._early: list[Worker] = []
        atexit.register(self.close)

    def _start(self) -> Worker:
        self._workers.append(Worker())
        return self._workers[-1]

    def start_early(self) -> None:
        """Start one worker before it is known what for: it imports torch while the command line is checked."""
        self._early.append(self._start())

    def take(self) -> Worker:
        """The worker that was started early, or a new one."""
        return self._early.pop() if self._early else self._start()

    def close(self) -> None:
        """End all workers; everything that they did is on disk."""
        while self._workers:
            self._workers[-1].kill()
            self._workers.pop()
        self._early.clear()


def pool() -> Pool:
    """The session's."""
    here = session()
    here.pool = here.pool or Pool()
    return here.pool


def in_folder(folder: str, task: Callable[[Any], Any], cfg: Any) -> Any:
    """A task in another launcher's process, where relative paths are to mean what they do in this one."""
    os.chdir(folder)
    return task(cfg)


# The worker's own end


def main() -> None:
    faulthandler.enable()
    gc.disable()
    connection = Connection(int(sys.argv[1]))
    os.set_inheritable(connection.fileno(), False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with(int(sys.argv[2]))
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    sending = threading.Lock()

    def send(*message: Any) -> None:
        with sending:
            connection.send_bytes(pickle.dumps(message))

    here = begin(Session(sink=_thinned(lambda event: send("event", event))))
    thread(_listen, connection, inbox)
    from segsweep.config import whitelist
    from segsweep.config.start import start
    from segsweep.runs import run  # noqa: F401 - all that a job needs, before the first job comes
    from segsweep.sweeps import job  # noqa: F401
    from segsweep.tracking import copying, recall

    start()

    def ask(*question: Any) -> bool:
        send("restore", *question)
        return pickle.loads(inbox.get())[1]  # while a job runs the parent sends nothing else

    here.copier, here.restorer = copying.Copier(lambda mirror: send("mirror", mirror)), recall.Restorer(ask)
    whitelist.own()  # before a job's configuration may change the environment
    gc.freeze()  # all that is imported stays: it is not looked through for garbage in the jobs' time
    gc.enable()
    send("ready")
    context: dict[str, Any] = {}
    packed = b""
    lines = _Lines()
    while True:
        kind, *content = pickle.loads(inbox.get())
        if kind == "setup":
            visible, threads, packed = content
            _set_up(visible, threads)
            sys.stdout = sys.stderr = lines
        elif kind == "job":
            number, config, here.retries = content
            done = _run(config, packed, context)
            lines.end()
            send("done", number, done)
            _free()


def _end_with(parent: int) -> None:
    """Whatever ends the parent ends this process and what it started; on Linux the kernel sees to it."""
    signal.signal(signal.SIGTERM, lambda number, frame: os.killpg(0, signal.SIGKILL))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _listen(connection: Connection, inbox: "queue.SimpleQueue[bytes]") -> None:
    """Runs beside the job, so that a request to stop reaches it; the end of the parent is the end of this process."""
    try:
        while True:
            message = connection.recv_bytes()
            if message == STOP:
                session().stop()
            else:
                inbox.put(message)
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)


def _thinned(sink: Sink) -> Sink:
    last = 0.0

    def send(event: dict[str, Any]) -> None:
        nonlocal last
        if event["kind"] == "step":
            if time.monotonic() - last < 1 / STEPS_A_SECOND:
                return
            last = time.monotonic()
        sink(event)

    return send


class _Lines(io.TextIOBase):
    """What jobs print goes to the parent line by line, which shows it above its live table."""

    rest = ""

    def write(self, text: str) -> int:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            session().emit("text", text=line.rpartition("\r")[2])
        self.rest = self.rest.rpartition("\r")[2]  # of a bar that is drawn over and over, what is seen of it
        return len(text)

    def end(self) -> None:
        """Of a job: what it printed last, without a new line."""
        if self.rest:
            self.write("\n")


def _set_up(visible: str | None, threads: int | None) -> None:
    """`visible`: CUDA devices of this worker, as in CUDA_VISIBLE_DEVICES; None: all."""
    import torch
    from hydra.core.utils import setup_globals

    setup_globals()
    if visible is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


class _Unpickler(pickle.Unpickler):
    """What is `__main__` where the script was started has here the name by which its door is found."""

    def find_class(self, module: str, name: str) -> Any:
        door = session().door
        return super().find_class(door.target.rpartition(".")[0] if door and module == "__main__" else module, name)


def unpacked(packed: bytes) -> Any:
    """Of this process or the one that started it."""
    return _Unpickler(io.BytesIO(packed)).load()


def _context(packed: bytes) -> dict[str, Any]:
    """Of `(task, callbacks, whitelist)`; the first brings the code that the others, and configurations, may be of."""
    from hydra.types import HydraContext

    task, callbacks, whitelist = unpacked(packed)
    context = HydraContext(config_loader=None, callbacks=callbacks, execution_whitelist=whitelist)  # type: ignore[arg-type]
    return {"task_function": task, "hydra_context": context}


def _run(config: bytes, packed: bytes, context: dict[str, Any]) -> Any:
    """Hydra's JobReturn, less the configurations, which the parent has; None where the job was interrupted. `context`
    is filled of `packed` by the first job: what cannot be loaded fails the job."""
    from hydra.core.utils import JobReturn, JobStatus, run_job

    try:
        if not context:
            context.update(_context(packed))
        done = run_job(
            config=unpacked(config), job_dir_key="hydra.sweep.dir", job_subdir_key="hydra.sweep.subdir", **context
        )
        done.cfg = done.hydra_cfg = None
        return done
    except KeyboardInterrupt:
        return None
    except BaseException as error:  # SystemExit in a component: its job fails, the worker lives
        failed = JobReturn(overrides=[], status=JobStatus.FAILED)
        failed.return_value = RuntimeError(f"{type(error).__name__}: {error}")
        return failed


def _free() -> None:
    """Give cached memory back, the GPU's too: other workers may need it before this one has its next job."""
    from segsweep.core import environment

    torch = sys.modules["torch"]
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
    environment.give_memory_back()
