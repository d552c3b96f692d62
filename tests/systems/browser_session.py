"""One tab of a real headless Chromium that stays open: keys, files, scripts, pictures, and what it asked for.

Chromium's DevTools protocol over a pair of pipes (``--remote-debugging-pipe``): JSON messages, each with a zero
byte at its end.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from browser import chromium

_LAUNCHER = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)
_LIMIT_S = 30.0
_KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowRight": 39}


class PageError(AssertionError):
    """A script in the page failed, or what was waited for did not happen."""


class Tab:
    """A tab; made by :func:`tab`."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._count = 0
        self._answers: dict[int, dict[str, Any]] = {}
        self._arrived = threading.Condition()
        self._session: str | None = None
        self.requests: list[str] = []
        """Every address that the tab asked for."""
        self.complaints: list[str] = []
        """Uncaught errors, ``console.error`` and what the browser itself reports, such as a broken policy."""
        threading.Thread(target=self._read, daemon=True).start()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")
        self.send("Page.setBypassCSP", enabled=False)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the protocol and return its result."""
        self._count += 1
        number = self._count
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        with self._arrived:
            if not self._arrived.wait_for(lambda: number in self._answers, _LIMIT_S):
                raise PageError(f"no answer to {method} within {_LIMIT_S:g} s")
            answer = self._answers.pop(number)
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']}")
        return dict(answer["result"])

    def open(self, url: str) -> None:
        """Go to ``url`` and wait until it was loaded."""
        self.send("Page.navigate", url=url)
        self.wait(f"document.readyState === 'complete' && location.href === {json.dumps(url)}")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression; promises are awaited."""
        done = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in done:
            details = done["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return done["result"].get("value")

    def wait(self, script: str, *, limit_s: float = _LIMIT_S) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + limit_s
        while not self.run(f"Boolean({script})"):
            if time.monotonic() > end:
                raise PageError(f"this did not come true: {script}\ncomplaints: {self.complaints}")
            time.sleep(0.05)

    def text(self, selector: str) -> str:
        """Return the text of an element as it is rendered."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def click(self, selector: str) -> None:
        """Click an element."""
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def fill(self, selector: str, value: str) -> None:
        """Put text into a field, as typing does."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.run("document.activeElement.select?.()")
        self.send("Input.insertText", text=value)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a select, or set a slider."""
        self.run(
            f"(e => {{ e.value = {json.dumps(value)}; for (const n of ['input', 'change']) "
            f"e.dispatchEvent(new Event(n, {{bubbles: true}})); }})(document.querySelector({json.dumps(selector)}))"
        )

    def press(self, *keys: str, shift: bool = False) -> None:
        """Press keys, one after the other."""
        for key in keys:
            code = _KEYS.get(key, ord(key[0].upper()))
            fields: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
            text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
            self.send("Input.dispatchKeyEvent", type="keyDown", **fields, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **fields)

    def give_file(self, selector: str, path: Path) -> None:
        """Choose a file in a file field."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def look(self, *, width: int = 1280, height: int = 900, dark: bool = False, phone: bool = False) -> None:
        """Set the size of the window and the colour scheme."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def picture(self, path: Path) -> Path:
        """Write a PNG of the whole page."""
        data = self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def _read(self) -> None:
        rest = b""
        while chunk := os.read(self._from, 2**20):
            *whole, rest = (rest + chunk).split(b"\0")
            for line in whole:
                self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            with self._arrived:
                self._answers[message["id"]] = message
                self._arrived.notify_all()
            return
        method, parameters = message["method"], message["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])
        elif method == "Page.javascriptDialogOpening":  # "leave the page?"; waiting here would wait for ourselves
            answer = {"method": "Page.handleJavaScriptDialog", "params": {"accept": True}, "id": 0}
            os.write(self._to, json.dumps(answer | {"sessionId": message["sessionId"]}).encode() + b"\0")
        elif method == "Runtime.exceptionThrown":
            details = parameters["exceptionDetails"]
            self.complaints.append(str(details.get("exception", {}).get("description", details["text"])))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert", "warning"):
            self.complaints.append(str([a.get("value", a.get("description")) for a in parameters["args"]]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.complaints.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")


@contextlib.contextmanager
def tab(folder: Path, arguments: Sequence[str] = ()) -> Iterator[Tab]:
    """Start a browser with a fresh profile in ``folder``, and end it."""
    pairs = [os.pipe(), os.pipe()]
    (read_commands, commands), (events, write_events) = pairs
    # numbers above 3 and 4, so that the launcher can move them there
    theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (read_commands, write_events)]
    os.close(read_commands)
    os.close(write_events)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options += ["--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", *arguments]
    process = subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, *map(str, theirs), chromium(), *options],
        pass_fds=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for fd in theirs:
        os.close(fd)
    try:
        yield Tab(commands, events)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(commands)
