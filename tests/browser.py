"""A real browser for the tests of HTML pages."""

import json
import select
import subprocess
import time

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Enter": 13, " ": 32}


BROKEN_WORDS = r"""(() => {
  const broken = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.parentElement.closest("script, style, noscript, textarea, option, legend, [hidden]")) continue;
    for (const word of node.data.matchAll(/[\p{L}\p{N}]{2,24}/gu)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].filter(box => box.width).map(box => Math.round(box.top)));
      if (lines.size > 1) broken.push(word[0]);
    }
  }
  return broken;
})()"""
"""Returns the words of a page that are set on two lines."""


class Browser:
    """Headless Chromium, controlled through its DevTools pipe without a driver or another package."""

    def __init__(self, binary: str, profile):
        # Chromium reads commands from descriptor 3 and responds on 4
        self.process = subprocess.Popen(
            ["sh", "-c", 'exec "$@" 3<&0 4>&1 </dev/null >/dev/null', "sh", binary, "--headless", "--no-sandbox",
             "--disable-gpu", "--mute-audio", "--no-first-run", "--remote-debugging-pipe",
             "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",  # a microphone that hears beeps
             f"--user-data-dir={profile}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        self.buffer, self.calls, self.events, self.session = b"", 0, [], {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters) -> dict:
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": parameters} | self.session
        self.process.stdin.write(json.dumps(message).encode() + b"\0")
        while (response := self.receive()).get("id") != self.calls:
            self.events.append(response)
        assert "error" not in response, response
        return response["result"]

    def receive(self) -> dict:
        while b"\0" not in self.buffer:
            assert select.select([self.process.stdout], [], [], 30)[0], "no message from the browser for 30 s"
            self.buffer += (read := self.process.stdout.read(1 << 20))
            assert read, "the browser has exited"
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def run(self, script: str):
        response = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in response, response
        return response["result"].get("value")

    def wait(self, script: str) -> None:
        end = time.monotonic() + 10
        while not self.run(script):
            assert time.monotonic() < end, f"never became true: {script}"
            time.sleep(0.02)

    def open(self, address: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=address)
        self.wait(f"location.href === {json.dumps(address)} && document.readyState === 'complete'")

    def set_viewport(self, width: int, height: int, scheme: str = "light") -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def press(self, key: str, shift: bool = False, control: bool = False) -> None:
        common = {"key": key, "code": key, "modifiers": 8 * shift + 2 * control,
                  "windowsVirtualKeyCode": KEYS.get(key, ord(key[0].upper()))}
        types = {"text": "\r" if key == "Enter" else key} if (len(key) == 1 or key == "Enter") and not control else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **common | types)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector: str, across: float = 0.5) -> None:
        x, y = self.run(f"""(() => {{ const element = document.querySelector({json.dumps(selector)});
            element.scrollIntoView({{block: "center"}}); const box = element.getBoundingClientRect();
            return [box.left + {across} * box.width, box.top + box.height / 2]; }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def assert_fits(self, width: int) -> None:
        """Check that the page does not scroll sideways, and that no word is broken."""
        assert self.run("document.documentElement.scrollWidth") <= width
        assert self.run(BROKEN_WORDS) == []

    def console_errors(self) -> list:
        return [event for event in self.events if event["method"] == "Runtime.exceptionThrown"
                or (event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] in ("error", "warning"))]

    def close(self) -> None:
        self.session = {}
        self.process.stdin.write(b'{"id": 0, "method": "Browser.close"}\0')
        self.process.wait(20)
