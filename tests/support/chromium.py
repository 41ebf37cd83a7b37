"""The installed Chromium, driven by Playwright."""

import contextlib
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright


@contextlib.contextmanager
def launched(*more: str) -> Iterator[Browser]:
    """A browser, with `more` on its command line. While it lives, this thread has a running loop."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", *more]
        browser = playwright.chromium.launch(executable_path=path, args=arguments, timeout=60_000)
        yield browser
        browser.close()
