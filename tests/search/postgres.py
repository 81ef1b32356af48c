"""A PostgreSQL server of Debian's on a free loopback port, for as long as a test needs it."""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = [*map(str, sorted(Path("/usr/lib/postgresql").glob("*/bin"))), *os.environ["PATH"].split(os.pathsep)]
PG_CTL = next((found for place in reversed(PROGRAMS) if (found := shutil.which("pg_ctl", path=place))), None)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """`url` for SQLAlchemy; `stop` and `start` keep the data."""

    def __init__(self, folder: Path):
        port = free_port()
        self.data, self.url = folder / "data", f"postgresql://postgres@127.0.0.1:{port}/postgres"
        self.options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        self._run("initdb", "-o", "-U postgres -A trust -N")

    def start(self) -> None:
        self._run("start", "-w", "-l", str(self.data.parent / "log"), "-o", self.options)

    def stop(self) -> None:
        self._run("stop", "-m", "immediate")

    def _run(self, *arguments: str) -> None:
        assert PG_CTL is not None
        user = {"user": "postgres"} if os.getuid() == 0 else {}  # it refuses to run as root
        command = [PG_CTL, arguments[0], "-D", str(self.data), *arguments[1:]]
        done = subprocess.run(
            command, cwd=self.data.parent, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **user
        )
        assert done.returncode == 0, done.stderr


@contextlib.contextmanager
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="segsweep-postgres-"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, "postgres")
        made = Server(folder)
        made.start()
        try:
            yield made
        finally:
            with contextlib.suppress(AssertionError):  # a test may have stopped it
                made.stop()
    finally:
        shutil.rmtree(folder)
