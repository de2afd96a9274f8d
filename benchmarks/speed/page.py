"""The page in a real browser: seconds to the first paint, and frames while a document scrolls."""

import json
import random
import statistics
from collections.abc import Mapping
from typing import Any

from playwright.sync_api import Browser, Page, Route, sync_playwright

ADAPTATION, FILE = "adapt-bench", "file-bench"
BINS = 4096
"""Bins of a trace, the most that a server sends."""
SCROLL_SECONDS = 3.0
FRAME_MS = 1000.0 / 60.0
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]

SCROLL = """
async ([selector, seconds]) => {
  const paper = document.querySelector(selector);
  const times = [];
  const began = performance.now();
  for (;;) {
    const now = await new Promise(requestAnimationFrame);
    times.push(now);
    const share = (now - began) / (1000 * seconds);
    if (share >= 1) break;
    paper.scrollTop = share * (paper.scrollHeight - paper.clientHeight);
  }
  return times.slice(1).map((time, frame) => time - times[frame]);
}
"""
"""Scrolls an element from its beginning to its end and returns the milliseconds of each frame."""


FIRST_PAINT = """
new Promise((resolve) => {
  const observer = new PerformanceObserver((list) => {
    const [paint] = list.getEntriesByName("first-contentful-paint");
    if (paint) resolve(paint.startTime);
  });
  observer.observe({ type: "paint", buffered: true });
})
"""
"""Waits for the first paint of anything and returns when it was, in milliseconds."""


class PageBench:
    """Shows a run in Chromium whose events are made up, as they would be for a long document.

    Args:
        url: a server that serves the page.
        chromium: the browser's executable.
        tokens: length of the document in tokens.
    """

    def __init__(self, url: str, chromium: str, tokens: int) -> None:
        self.url, self.chromium, self.tokens = url, chromium, tokens

    def run(self, repeats: int) -> dict[str, Any]:
        """Start a browser and measure in it."""
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=self.chromium, args=FLAGS)
            try:
                return self.measure(browser, repeats)
            finally:
                browser.close()

    def measure(self, browser: Browser, repeats: int) -> dict[str, Any]:
        """Measure the first paint without a cache, and a scroll through the document.

        Medians over ``repeats``, each in a browser profile of its own.
        """
        paints, frames, shown = [], [], []
        for _ in range(repeats):
            paints.append(self._first_paint(browser))
            milliseconds, seconds = self._scroll(browser)
            frames.append(milliseconds)
            shown.append(seconds)
        late = [sum(frame > 1.5 * FRAME_MS for frame in one) / len(one) for one in frames]
        return {
            "browser": f"Chromium {browser.version}",
            "document_tokens": self.tokens,
            "first_paint_seconds": statistics.median(paints),
            "heat_map_shown_seconds": statistics.median(shown),
            "frames_per_second": statistics.median(1000 * len(one) / sum(one) for one in frames),
            "median_frame_ms": statistics.median(statistics.median(one) for one in frames),
            "share_of_late_frames": statistics.median(late),
        }

    def _first_paint(self, browser: Browser) -> float:
        page = browser.new_page()
        page.goto(self.url)
        page.get_by_role("heading", level=1).wait_for()
        milliseconds = page.evaluate(FIRST_PAINT)
        page.close()
        return float(milliseconds) / 1000

    def _scroll(self, browser: Browser) -> tuple[list[float], float]:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        self._answer(page)
        page.goto(f"{self.url}/#/run/{ADAPTATION}?file={FILE}")
        page.locator(".paper [data-bin='100']").wait_for()
        seconds = float(page.evaluate("performance.now() / 1000"))
        page.locator(".paper").scroll_into_view_if_needed()
        milliseconds = page.evaluate(SCROLL, [".paper", SCROLL_SECONDS])
        page.close()
        return [float(one) for one in milliseconds], seconds

    def _answer(self, page: Page) -> None:
        """Answer the page's requests about the run in the server's place."""
        text, starts, ends = _document(self.tokens)
        events = [
            ("request.accepted", {"queue_position": 0, "seconds_left": 0}),
            ("document.trace", _trace("before", self.tokens, starts, ends, seed=0)),
            ("document.trace", _trace("after", self.tokens, starts, ends, seed=1)),
        ]
        stream = "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in events)
        document = {"id": FILE, "filename": "bench.txt", "text": text, "pages": []}

        def fulfill(body: str, content_type: str) -> Any:
            def answer(route: Route) -> None:
                route.fulfill(body=body, content_type=content_type)

            return answer

        page.route("**/events", fulfill(stream, "text/event-stream"))
        page.route(f"**/v1/documents/{FILE}", fulfill(json.dumps(document), "application/json"))


def _document(tokens: int) -> tuple[str, list[int], list[int]]:
    """Return a text of lines, and the first and last characters of the bins of its trace."""
    generator = random.Random(0)
    words = ["".join(generator.choices("etaoinshrdlu", k=length)) for length in range(1, 10)]
    per_bin = max(1, -(-tokens // BINS))
    pieces = []
    for place in range(0, tokens, per_bin):
        piece = "".join(f" {generator.choice(words)}" for _ in range(min(per_bin, tokens - place)))
        pieces.append(piece + "\n" * (generator.random() < 0.05))
    starts, end = [], 0
    for piece in pieces:
        starts.append(end)
        end += len(piece)
    return "".join(pieces), starts, [*starts[1:], end]


def _trace(
    stage: str, tokens: int, starts: list[int], ends: list[int], seed: int
) -> Mapping[str, Any]:
    generator = random.Random(seed)
    evidence = [
        {"start": starts[bin], "end": ends[bin + 20]}
        for bin in (50, 900, 2000)
        if bin + 20 < len(ends)
    ]
    return {
        "stage": stage,
        "step": int(stage == "after"),
        "tokens": tokens,
        "tokens_per_bin": max(1, -(-tokens // BINS)),
        "starts": starts,
        "ends": ends,
        "entropy": [round(generator.expovariate(0.5), 3) for _ in starts],
        "attention": [generator.expovariate(len(starts)) for _ in starts],
        "attention_layers": [15],
        "evidence": evidence,
        "evidence_attention": 0.3,
        "spans": [],
        "held_out": [],
    }
