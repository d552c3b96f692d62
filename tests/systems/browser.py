"""A real headless Chromium, driven by its command line: pictures, the DOM after layout, console and network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def chromium() -> str:
    """Return the browser's program, ``CILSEG_CHROMIUM`` or the first known name on the path."""
    wanted = os.environ.get("CILSEG_CHROMIUM")
    found = shutil.which(wanted) if wanted else next((p for p in map(shutil.which, _NAMES) if p), None)
    if found is None:
        raise AssertionError("No Chromium found: apt-get install -y chromium, or name it in CILSEG_CHROMIUM.")
    return found


@dataclass(frozen=True)
class Visit:
    """What a visit of a page left: the serialised DOM, console lines, and the URLs that were asked for."""

    dom: str
    console: list[str]
    requests: list[str]


class Browser:
    """Opens files, each time in a fresh profile below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._program, self._count = folder, chromium(), 0

    def visit(self, page: Path) -> Visit:
        """Load ``page`` and return what it became, what it logged and what it fetched."""
        log = self._folder / "net.json"
        done = self._run("--dump-dom", "--enable-logging=stderr", f"--log-net-log={log}", page.as_uri())
        console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        return Visit(done.stdout, console, _urls(log))

    def picture(self, page: Path, *, width: int, height: int, dark: bool = False) -> Path:
        """Return a PNG of the page as it is painted."""
        target = self._folder / f"{page.stem}-{width}-{'dark' if dark else 'light'}.png"
        scheme = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
        self._run(f"--window-size={width},{height}", f"--screenshot={target}", *scheme, page.as_uri())
        return target

    def pdf(self, page: Path) -> Path:
        """Return the page as it is printed."""
        target = self._folder / f"{page.stem}.pdf"
        self._run(f"--print-to-pdf={target}", "--no-pdf-header-footer", page.as_uri())
        return target

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self._count += 1
        command = [
            self._program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={self._folder / f'profile{self._count}'}",
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)


def _urls(log: Path) -> list[str]:
    """Return the http(s) addresses in a net log, without those of the browser's own services."""
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    urls = {str(e["params"]["url"]) for e in events if "url" in e.get("params", {})}
    own = ("google.com", "googleapis.com", "gvt1.com")
    return sorted(u for u in urls if u.startswith(("http:", "https:")) and not str(urlsplit(u).hostname).endswith(own))
