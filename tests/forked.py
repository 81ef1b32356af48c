"""Python programs that tests start, without the seconds that each would spend on importing torch, MLflow and scipy.

`install()` has `subprocess.Popen` ask a process that has imported them, and none of segsweep, for a fork that runs the
program as Python would: as `__main__`, with its own arguments, environment, folder, streams and path, and as a child of
whoever started it. The fork has such a process of its own, for the workers that it starts.

Started as ever is what says `executable=sys.executable`, a `-c` program that looks at what is imported, what has
options that a fork cannot have, and what has on its path a module of the name of one that is imported already. With
SEGSWEEP_NO_FORKS=1 everything is.
"""

import atexit
import contextlib
import ctypes
import fcntl
import gc
import importlib
import inspect
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

IMPORTED = (
    "torch",
    "torch.export",
    "numpy",
    "scipy.stats",
    "scipy.ndimage",
    "PIL.Image",
    "pandas",
    "hydra.main",
    "rich.live",
)
IMPORTED += ("hydra.core.plugins", "hydra._internal.hydra", "omegaconf", "optuna.storages", "optuna.samplers", "cmaes")
IMPORTED += ("mlflow", "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking.client", "alembic.migration")
IMPORTED += (
    "sqlalchemy.dialects.sqlite",
    "cloudpickle",
    "rich.progress",
    "matplotlib.backends.backend_agg",
    "filelock",
    "tqdm.auto",
)
HIGH = 400
"""Where descriptors are out of the way of those that a program wants at a number of their own."""
OTHERS = ("PYTHON", "OMP_", "MKL_", "OPENBLAS", "LD_", "LC_", "LANG", "MALLOC_", "GOMP", "KMP", "TORCH", "COVERAGE")
"""Of the environment, what a process reads when it starts or imports: where it differs nothing is forked."""
OWN = ("PYTHONPATH", "PYTHONSAFEPATH")
SUBREAPER = 36
PYTHON = sys.executable
"""Whatever a test says later that it is."""
Started = subprocess.Popen
ARGUMENTS = inspect.signature(Started._execute_child)


class Popen(Started):  # type: ignore[type-arg]
    """What it cannot have forked it starts."""

    first, source = False, None  # whether there is something to begin; where forks are asked for
    asking = threading.Lock()

    def _execute_child(self, *given: Any) -> None:
        asked = ARGUMENTS.bind(self, *given).arguments
        if not (program := plain(asked)) or not (pid := self.forked(program, asked)):
            super()._execute_child(*given)  # type: ignore[misc]
            return
        self.pid, self._child_created = pid, True
        self._close_pipe_fds(*(asked[name] for name in PIPES))  # type: ignore[attr-defined]

    def forked(self, program: dict[str, Any], asked: dict[str, Any]) -> int:
        """The child's number; 0 where it is to be started."""
        streams = [asked["p2cread"], asked["c2pwrite"], asked["errwrite"]]
        wanted = {number: number if fd == -1 else fd for number, fd in enumerate(streams)}
        wanted |= {fd: fd for fd in asked["pass_fds"]}
        request = pickle.dumps(program | {"fds": [*wanted], "parent": os.getpid()})
        with self.asking, adopting():
            if Popen.first:
                Popen.first, Popen.source = False, begin()
            if not Popen.source:
                return 0
            try:
                socket.send_fds(Popen.source, [len(request).to_bytes(8, "big")], [*wanted.values()])
                Popen.source.sendall(request)
                return int.from_bytes(receive(Popen.source, 8), "big")
            except (OSError, EOFError):
                return 0


PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")


def plain(asked: dict[str, Any]) -> dict[str, Any] | None:
    """A program of this Python, and nothing about its start that a fork could not have."""
    args, cwd = asked["args"], asked["cwd"]
    options = [asked[name] for name in ("executable", "preexec_fn", "startupinfo", "creationflags", "shell")]
    if (
        any(options)
        or not asked["close_fds"]
        or isinstance(args, str | bytes | os.PathLike)
        or cwd
        and not os.path.isdir(cwd)
    ):
        return None
    if any(asked[name] not in (None, -1) for name in ("gid", "gids", "uid", "umask")):
        return None
    line = [os.fspath(arg) for arg in args]
    if len(line) < 2 or line[0] != PYTHON:
        return None
    kind, *rest = line[2:] if line[1] == "-P" else line[1:]
    if kind not in ("-m", "-c") and kind.startswith("-") or line[1:3] == ["-m", "pytest"]:
        return None
    if kind == "-c" and any(word in rest[0] for word in ("sys.modules", "meta_path")):  # it looks at what is imported
        return None
    environment = dict(os.environ if asked["env"] is None else asked["env"])
    umask = os.umask(0)
    os.umask(umask)
    return {
        "line": line, "kind": kind, "rest": rest, "cwd": str(cwd or os.getcwd()), "environment": environment,
        "safe": line[1] == "-P" or bool(environment.get("PYTHONSAFEPATH")), "umask": umask,
        "session": asked["start_new_session"], "group": asked["process_group"],
    }  # fmt: skip


@contextlib.contextmanager
def adopting() -> Any:
    """Processes whose parent ends become this one's children, as Linux has it."""
    prctl = ctypes.CDLL(None).prctl
    prctl(SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(SUBREAPER, 0)


def receive(source: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        if not (part := source.recv(size - len(found))):
            raise EOFError
        found += part
    return found


def serve(source: socket.socket, environment: dict[str, str]) -> dict[str, Any]:
    """Fork for whoever is at the other end, until they are gone; the request, in a fork."""
    while True:
        try:
            size, fds, _, _ = socket.recv_fds(source, 8, 64)
            request = pickle.loads(receive(source, int.from_bytes(size, "big"))) if size else None
        except (OSError, EOFError):
            request = None
        if request is None:
            os._exit(0)
        if not forkable(request, environment):
            source.sendall(bytes(8))
        elif between := os.fork():
            os.waitpid(between, 0)
        else:
            if os.fork():
                os._exit(0)  # the fork is now a child of who adopts
            while os.getppid() != request["parent"]:
                time.sleep(0.001)
            source.sendall(os.getpid().to_bytes(8, "big"))
            source.close()
            high = [fcntl.fcntl(fd, fcntl.F_DUPFD, HIGH + 100) for fd in fds]
            for fd in fds:
                os.close(fd)
            for fd, number in zip(high, request["fds"], strict=True):
                os.dup2(fd, number, inheritable=True)
                os.close(fd)
            return request
        for fd in fds:
            os.close(fd)


def forkable(request: dict[str, Any], environment: dict[str, str]) -> bool:
    """Whether it would start with what is here: the same variables, and no module of a name that is taken."""
    given = request["environment"]
    if any(given.get(k) != environment.get(k) for k in {*given, *environment} if k.startswith(OTHERS) and k not in OWN):
        return False
    taken = {name.partition(".")[0] for name in sys.modules} | {"sitecustomize", "usercustomize"}
    for folder in first(request):
        with contextlib.suppress(OSError):
            if any(entry.name.partition(".")[0] in taken and entry.name != "tests" for entry in os.scandir(folder)):
                return False
    return True


def first(request: dict[str, Any]) -> list[str]:
    """What Python puts in front of its own path."""
    named = [
        os.path.join(request["cwd"], name)
        for name in request["environment"].get("PYTHONPATH", "").split(os.pathsep)
        if name
    ]
    if request["safe"]:
        return named
    if request["kind"] in ("-m", "-c"):
        return [request["cwd"], *named]
    return [os.path.dirname(os.path.realpath(os.path.join(request["cwd"], request["kind"]))), *named]


def become(request: dict[str, Any], base: list[str]) -> None:
    """Be a process that has just started, but for its modules."""
    if request["session"]:
        os.setsid()
    elif request["group"] is not None and request["group"] >= 0:
        os.setpgid(0, request["group"])
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for fd, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        before = getattr(sys, name)
        stream = open(fd, mode, encoding=before.encoding, errors=before.errors, closefd=False)  # noqa: SIM115
        if name == "stderr":
            stream.reconfigure(line_buffering=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.path[:] = [*first(request), *base]
    if request["kind"] == "-c" and not request["safe"]:
        sys.path[0] = ""
    sys.path_importer_cache.clear()
    sys.orig_argv[:] = request["line"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.modules["__main__"].__dict__["__builtins__"] = __builtins__


def follow(request: dict[str, Any]) -> None:
    """The program, as `__main__`."""
    kind, rest = request["kind"], request["rest"]
    main = sys.modules["__main__"].__dict__
    if kind == "-m":
        sys.argv[:] = ["-m", *rest[1:]]
        runpy._run_module_as_main(rest[0])  # type: ignore[attr-defined]
    elif kind == "-c":
        sys.argv[:] = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), main)
    else:
        sys.argv[:] = [kind, *rest]
        main["__file__"] = kind
        exec(compile(Path(kind).read_bytes(), kind, "exec"), main)


def far(source: socket.socket) -> socket.socket:
    """The same, at a number that no program asks for."""
    with source:
        return socket.socket(fileno=fcntl.fcntl(source.fileno(), fcntl.F_DUPFD_CLOEXEC, HIGH))


def forks(source: socket.socket, base: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Serve; a fork gets a server of its own, in which alone this returns again."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = serve(source, environment)
    ours, theirs = map(far, socket.socketpair())
    if request["line"][1] != "-P" and not os.fork():  # a worker has none
        ours.close()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nowhere, number)
        os.closerange(3, HIGH)
        return forks(theirs, base, request["environment"])
    theirs.close()
    Popen.source = ours if request["line"][1] != "-P" else None
    return request


def install() -> None:
    """For this process of pytest."""
    if sys.platform != "linux" or os.environ.get("SEGSWEEP_NO_FORKS") or subprocess.Popen is Popen:
        return
    Popen.first = True
    subprocess.Popen = Popen  # type: ignore[misc]


def begin() -> socket.socket:
    """The process that has imported them, for as long as this one lives."""
    ours, theirs = map(far, socket.socketpair())
    with theirs:
        line = [PYTHON, "-P", __file__, str(theirs.fileno())]
        # the path of the test that happens to be the first is not that of all
        environment = {name: value for name, value in os.environ.items() if name not in OWN}
        options: dict[str, Any] = {"env": environment, "stdin": subprocess.DEVNULL}
        atexit.register(Started(line, pass_fds=[theirs.fileno()], **options).kill)
    return ours


def main() -> None:
    base = list(sys.path)
    environment = dict(os.environ)
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    subprocess.Popen = Popen  # type: ignore[misc]
    request = forks(socket.socket(fileno=int(sys.argv[1])), base, environment)
    become(request, base)
    follow(request)


if __name__ == "__main__":
    main()
