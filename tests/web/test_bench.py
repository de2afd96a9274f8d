"""The benchmark of the page: its figures are there and those of a page that was shown."""

import shutil

from playwright.sync_api import Browser

from refine_server.benchmarks.speed.page import PageBench


def test_the_page_is_measured(url: str, browser: Browser) -> None:
    chromium = shutil.which("chromium")
    assert chromium is not None
    told = PageBench(url, chromium, tokens=2000).measure(browser, repeats=1)
    assert told["document_tokens"] == 2000
    assert told["first_paint_seconds"] > 0
    assert told["heat_map_shown_seconds"] > 0
    assert 1 < told["frames_per_second"] < 61
    assert 0 <= told["share_of_late_frames"] <= 1
