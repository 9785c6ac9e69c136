"""A headless Chromium for tests, spoken to over its debugging pipe; no driver and no further library.

`$CHROMIUM` names the binary, or one is found on the PATH. CONTRIBUTING.md tells how to get one from a package registry.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--no-zygote",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--disable-background-networking",
)


def _fonts(folder: Path) -> Path:
    """Return a font configuration: the machine's fonts, and those of matplotlib for a machine without any."""
    own = importlib.util.find_spec("matplotlib")
    folders = [
        "/usr/share/fonts",
        *([str(Path(own.origin).parent / "mpl-data/fonts/ttf")] if own and own.origin else []),
    ]
    file = folder / "fonts.conf"
    dirs = "".join(f"<dir>{each}</dir>" for each in folders)
    file.write_text(f"<fontconfig>{dirs}<cachedir>{folder / 'fonts'}</cachedir></fontconfig>", encoding="utf-8")
    return file


def find() -> str | None:
    """Return the browser to use, None if there is none."""
    named = os.environ.get("CHROMIUM")
    return named or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of one browser. ``events``: everything it told by itself, as (method, params)."""

    def __init__(self, binary: str, folder: Path) -> None:
        here, theirs = os.pipe(), os.pipe()
        self.process = subprocess.Popen(
            [
                "bash",
                "-c",
                f'exec "$0" "$@" 3<&{here[0]} 4>&{theirs[1]}',
                binary,
                *FLAGS,
                f"--user-data-dir={folder / 'profile'}",
                "about:blank",
            ],
            pass_fds=(here[0], theirs[1]),
            env={**os.environ, "HOME": str(folder), "FONTCONFIG_FILE": str(_fonts(folder))},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(here[0])
        os.close(theirs[1])
        self._write, self._read, self._buffer, self._number = here[1], theirs[0], b"", 0
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        pages = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        return self._until(lambda m: m.get("id") == self._number)["result"]

    def open(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        """Load a file in a window of this size, the user preferring this colour scheme."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        if not any(name == "Page.loadEventFired" for name, _ in self.events):
            self._until(lambda m: m.get("method") == "Page.loadEventFired")

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page."""
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def screenshot(self) -> bytes:
        """Return the window as PNG."""
        shot = self.call("Page.captureScreenshot", format="png")
        return base64.b64decode(shot["data"])

    def _until(self, fits: Any, seconds: float = 60) -> dict[str, Any]:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            while b"\0" in self._buffer:
                line, _, self._buffer = self._buffer.partition(b"\0")
                message = json.loads(line)
                if "method" in message:
                    self.events.append((message["method"], message["params"]))
                if fits(message):
                    return message
            if select.select([self._read], [], [], 1)[0]:
                data = os.read(self._read, 1 << 20)
                if not data:
                    raise RuntimeError("the browser went away")
                self._buffer += data
        raise TimeoutError("the browser does not answer")
