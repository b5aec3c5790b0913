"""A page in headless Chromium, driven as a person does it: look, click, type. Chrome DevTools protocol."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import websocket

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
KEYS = {"Enter": 13, "ArrowLeft": 37}
CENTRE = """(() => {
  const found = [...document.querySelectorAll(%s)].filter(one => one.offsetParent || one.getClientRects().length);
  const one = found.find(one => %s === null || (one.textContent || one.value || "").trim() === %s);
  if (!one) return null;
  one.scrollIntoViewIfNeeded();
  const box = one.getBoundingClientRect();
  return [box.x + box.width / 2, box.y + box.height / 2];
})()"""


class Page:
    """One tab. What it complained about is in ``complaints``."""

    def __init__(self, address: str) -> None:
        self._socket = websocket.create_connection(address, timeout=60, suppress_origin=True)
        self._number = 0
        self.complaints: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv())
            if said.get("id") == self._number:
                assert "error" not in said, said["error"]
                return said["result"]
            self._note(said.get("method", ""), said.get("params", {}))

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            self.complaints.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.complaints.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif event == "Runtime.consoleAPICalled" and about["type"] == "error":
            self.complaints.append(" ".join(str(one.get("value", one.get("description"))) for one in about["args"]))

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, expression: str, *, seconds: float = 60) -> Any:
        """Return the value of a JavaScript expression as soon as it is true of the page."""
        until = time.monotonic() + seconds
        while not (value := self.ask(expression)):
            assert time.monotonic() < until, f"the page never came to {expression[:500]}"
            time.sleep(0.2)
        return value

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def click(self, selector: str, text: str | None = None, *, count: int = 1, seconds: float = 60) -> None:
        """Click the first visible element of a selector (that says ``text``), once it is there."""
        wanted = json.dumps(text)
        x, y = self.wait(CENTRE % (json.dumps(selector), wanted, wanted), seconds=seconds)
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for clicks in range(1, count + 1):
            for what in ("mousePressed", "mouseReleased"):
                self.call("Input.dispatchMouseEvent", type=what, x=x, y=y, button="left", clickCount=clicks)

    def drag(self, places: list[tuple[float, float]]) -> None:
        """Press at the first place (x, y of what is seen), move through the others, release at the last."""
        for number, (x, y) in enumerate(places):
            what = "mouseMoved" if number else "mousePressed"
            self.call("Input.dispatchMouseEvent", type=what, x=x, y=y, button="left", buttons=1, clickCount=1)
        x, y = places[-1]
        self.call("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str) -> None:
        for what in ("keyDown", "keyUp"):
            text = {"text": "\r"} if (key, what) == ("Enter", "keyDown") else {}
            self.call("Input.dispatchKeyEvent", type=what, key=key, code=key, windowsVirtualKeyCode=KEYS[key], **text)

    def screenshot(self, path: Path) -> Path:
        """Write what is seen, PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))
        return path


@contextmanager
def page(folder: Path, *, width: int = 1400, height: int = 1000) -> Iterator[Page]:
    """Start Chromium with a fresh profile in ``folder``; yield its page."""
    assert CHROMIUM
    profile = Path(tempfile.mkdtemp(prefix="profile", dir=folder))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", f"--window-size={width},{height}"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with (folder / "chromium.log").open("w") as log:
        browser = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        port_file = profile / "DevToolsActivePort"
        for _ in range(300):
            if port_file.is_file() and len(lines := port_file.read_text().splitlines()) == 2:
                break
            assert browser.poll() is None, (folder / "chromium.log").read_text()
            time.sleep(0.1)
        request = Request(f"http://127.0.0.1:{lines[0]}/json/list")
        tabs = json.load(urlopen(request, timeout=30))
        yield Page(next(tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"))
    finally:
        browser.terminate()
        try:
            browser.wait(20)
        except subprocess.TimeoutExpired:
            browser.kill()
            browser.wait()
