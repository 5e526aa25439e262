"""A headless Chromium driven over its debugging pipe: enough of the DevTools protocol to open a page, act and look."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Self

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


class Browser:
    """One tab; a context manager.

    `errors` holds what the console and uncaught exceptions said, `requests` every URL that was asked for.
    """

    def __init__(self, width: int = 1280, height: int = 900, dark: bool = False):
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        their_input, self._to = os.pipe()
        self._from, their_output = os.pipe()
        # Chromium reads commands from its descriptor 3 and answers on 4.
        moved = f"exec 3<&{their_input} 4>&{their_output}; exec \"$@\""
        flags = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--hide-scrollbars")
        self._process = subprocess.Popen(
            ["bash", "-c", moved, "chromium", PROGRAM, *flags, f"--user-data-dir={self._profile.name}", "about:blank"],
            pass_fds=(their_input, their_output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_input)
        os.close(their_output)
        self._waiting, self._number, self._session = b"", 0, None
        self.errors: list[str] = []
        self.requests: list[str] = []
        pages = [t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.send("Target.attachToTarget", targetId=pages[0]["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")
        self.resize(width, height)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=scheme)

    def resize(self, width: int, height: int, mobile: bool = False, scale: float = 1) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=mobile)

    def send(self, method: str, **parameters: Any) -> dict:
        """Sends a command and returns its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self._waiting:
                received = os.read(self._from, 1 << 20)
                if not received:
                    raise RuntimeError("Chromium ended")
                self._waiting += received
            line, self._waiting = self._waiting.split(b"\0", 1)
            answer = json.loads(line)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self._event(answer)

    def _event(self, event: dict) -> None:
        values = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = values["exceptionDetails"]
                self.errors.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if values["type"] in ("error", "warning"):
                self.errors.append(str([argument.get("value") for argument in values["args"]]))
            case "Log.entryAdded" if values["entry"]["level"] in ("error", "warning"):
                self.errors.append(values["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(values["request"]["url"])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", "a script failed"))
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 15) -> None:
        """Until a JavaScript expression is true; RuntimeError when it does not come true."""
        loop = f"""new Promise((done) => {{
            const end = performance.now() + {seconds * 1000};
            const ask = () => ({condition}) ? done(true) : performance.now() > end ? done(false) : setTimeout(ask, 20);
            ask(); }})"""
        if not self.run(loop):
            raise RuntimeError(f"never true: {condition}; errors: {self.errors}")

    def open(self, path: Path) -> None:
        self.send("Page.navigate", url=Path(path).absolute().as_uri())

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": key} if kind == "keyDown" and len(key) == 1 else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def screenshot(self, path: Path, whole: bool = False, selector: str = "") -> None:
        """The window, the whole page, or the place of one element."""
        clip = {}
        if selector:
            box = self.run(f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
                           "return {x: b.x + scrollX, y: b.y + scrollY, width: b.width, height: b.height, scale: 1}; })()")
            clip = {"clip": box}
        image = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole or bool(selector), **clip)
        Path(path).write_bytes(base64.b64decode(image["data"]))

    def close(self) -> None:
        os.close(self._to)  # Chromium ends when its pipe closes
        os.close(self._from)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._profile.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
