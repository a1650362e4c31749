"""Chromium as the tests drive it: over a pipe, in its own language (the DevTools protocol), with nothing to install beside it."""

from __future__ import annotations

import base64
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = next((found for name in NAMES if (found := shutil.which(name))), None)

# Runs before a page's own scripts, and keeps what the page was not allowed to do.
_WATCH = """
window.refused = [];
document.addEventListener("securitypolicyviolation", (event) => window.refused.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


class Chromium:
    """One browser with one page."""

    def __init__(self, *arguments: str) -> None:
        self._profile = tempfile.mkdtemp()
        self._ids = itertools.count(1)
        self.said: list[str] = []
        """Messages on the console, errors included."""
        self.session = ""
        from_us, to_it = os.pipe()
        from_it, to_us = os.pipe()
        command = [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions",
            "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
            f"--user-data-dir={self._profile}", *arguments, "about:blank",
        ]  # fmt: skip
        # The browser reads its file 3 and writes its file 4.
        shell = f'exec 3<&{from_us} 4>&{to_us}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "chromium", *command],
            pass_fds=(from_us, to_us),
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(from_us)
        os.close(to_us)
        self._write, self._read = os.fdopen(to_it, "wb"), os.fdopen(from_it, "rb")
        self.enter("page")
        self.ask("Page.addScriptToEvaluateOnNewDocument", source=_WATCH)

    def close(self) -> None:
        self._write.close()
        self._read.close()
        self._process.terminate()
        self._process.wait(timeout=60)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _next(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            if not byte:
                raise RuntimeError("the browser ended")
            message += byte
        found: dict[str, Any] = json.loads(message)
        if found.get("method") == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(value.get("value")) for value in found["params"]["args"]))
        if found.get("method") == "Runtime.exceptionThrown":
            self.said.append(found["params"]["exceptionDetails"]["exception"]["description"])
        if found.get("method") == "Log.entryAdded":
            self.said.append(found["params"]["entry"]["text"])
        return found

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its answer."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": params} | (
            {"sessionId": self.session} if self.session else {}
        )
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while (answer := self._next()).get("id") != number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def enter(self, kind: str) -> None:
        """Turns to the page, or to its "iframe" where that has a process of its own."""
        self.session = ""
        [target] = [one for one in self.ask("Target.getTargets")["targetInfos"] if one["type"] == kind]
        self.session = self.ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def open(
        self, file: Path, *, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True
    ) -> None:
        """Opens a page from a file and waits until it has loaded."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.ask("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.said.clear()
        self.ask("Page.navigate", url=file.as_uri())
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def value(self, expression: str) -> Any:
        """What an expression is worth in the page."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, expression: str) -> Any:
        """What an expression is worth in the page as soon as it is true there."""
        for _ in range(200):
            if found := self.value(expression):
                return found
            time.sleep(0.1)
        raise RuntimeError(f"never true: {expression}")

    def point(self, x: float, y: float) -> None:
        """Moves the pointer."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        self.point(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """A key that writes nothing, such as ArrowRight or Tab."""
        codes = {"Tab": 9, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        for kind in ("rawKeyDown", "keyUp"):
            self.ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def middle(self, selector: str, place: int = 0) -> tuple[float, float]:
        """The middle of an element, which is scrolled into view first."""
        # Two frames later the page has heard that it was scrolled.
        box = self.value(
            f"(async () => {{ const e = document.querySelectorAll({json.dumps(selector)})[{place}]; "
            "e.scrollIntoView({ block: 'center' }); "
            "for (let n = 0; n < 2; n++) await new Promise(requestAnimationFrame); "
            "const b = e.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; })()"
        )
        return box[0], box[1]

    def picture(self, file: Path) -> Path:
        """Of the whole page."""
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))
        return file
