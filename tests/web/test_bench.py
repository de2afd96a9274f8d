"""The benchmark of the page: its figures are there and those of a page that was shown."""

import shutil

from playwright.sync_api import Browser

from refine_server.benchmarks.speed.page import PageBench


def test_the_page_is_measured(url: str, browser: Browser) -> None:
    chromium = shutil.which("chromium")
    assert chromium is not None
    told = PageBench(url, chromium, tokens=2000).measure(browser, repeats=1)
    assert told["document_tokens"] == 2000
    assert 0 < told["first_paint_seconds"] < told["heat_map_shown_seconds"] + 30
    assert told["frames_per_second"] > 1
    assert 0 <= told["share_of_late_frames"] <= 1
