"""Chromium without a head, driven over its debugging pipe with nothing but the standard library."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
]
FLAGS += [
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]


class Page:
    """One tab; `complaints` gathers console errors, exceptions and failed loads as they come."""

    def __init__(self, read: int, write: int) -> None:
        self.read, self.write, self.buffer, self.number = read, write, b"", 0
        self.session: str | None = None
        self.complaints: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | (
            {"sessionId": self.session} if self.session else {}
        )
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._receive(60)
            if reply.get("id") == self.number:
                assert "error" not in reply, f"{method}: {reply['error']}"
                return reply["result"]

    def open(self, file: Path | str, width: int = 1280, height: int = 900, dark: bool = False) -> float:
        """Show `file`, or an address, at `width` CSS pixels; returns the milliseconds to the end of loading, by its own
        clock.
        """
        mobile = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        self.loaded = False
        self.call("Page.navigate", url=file if isinstance(file, str) else file.resolve().as_uri())
        end = time.monotonic() + 60
        while not self.loaded:
            self._receive(end - time.monotonic())
        time.sleep(0.2)  # the load event's own end is written just after it
        return float(self.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))

    def evaluate(self, script: str) -> Any:
        reply = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def until(self, script: str, seconds: float = 60) -> None:
        """Wait until `script` is true: for pages that draw themselves after they have loaded."""
        end = time.monotonic() + seconds
        while not self.evaluate(script):
            assert time.monotonic() < end, f"not true within {seconds:.0f} s: {script}"
            time.sleep(0.3)

    def screenshot(self, file: Path, whole: bool = False) -> None:
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(data))

    def _receive(self, seconds: float) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            ready = select.select([self.read], [], [], max(seconds, 0))[0]
            assert ready, f"Chromium gave no answer within {seconds:.0f} s"
            more = os.read(self.read, 1 << 20)
            assert more, "Chromium ended"
            self.buffer += more
        line, self.buffer = self.buffer.split(b"\0", 1)
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, about: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(f"exception: {about['exceptionDetails']['text']}")
        elif method == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
            self.complaints.append(f"console: {about['args']}")
        elif method == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            self.complaints.append(f"log: {about['entry']['text']}")
        elif method == "Network.loadingFailed":
            self.complaints.append(f"not loaded: {about['errorText']}")
        elif method == "Network.requestWillBeSent" and not about["request"]["url"].startswith(
            ("file:", "data:", "about:")
        ):
            self.complaints.append(f"asked the network for {about['request']['url']}")


@contextmanager
def chromium(profile: Path) -> Iterator[Page]:
    """A fresh browser with `profile` (an empty folder) as its user data; ends with the block."""
    assert CHROMIUM
    to_browser, our_write = os.pipe()
    our_read, from_browser = os.pipe()
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
    wire = f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}'  # Chromium reads commands from 3 and answers on 4
    command = ["bash", "-c", wire, "bash", CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet, pass_fds=ends)
    for end in (to_browser, from_browser, *ends):
        os.close(end)
    try:
        yield Page(our_read, our_write)
    finally:
        process.terminate()
        process.wait(20)
        os.close(our_read)
        os.close(our_write)
