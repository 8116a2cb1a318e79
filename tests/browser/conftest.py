"""A headless Chromium that is already on this machine: none is downloaded, and without one these tests are skipped."""

import os
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright drives browsers")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None or not Path(found).is_file():
        pytest.skip("no Chromium here: apt-get install chromium, or set CHROMIUM to one")
    sandbox = [] if os.geteuid() else ["--no-sandbox"]  # which root cannot have
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens a page; at the end it must have logged no error, and have asked nobody but its own origin."""
    problems, allowed = [], []

    @contextmanager
    def opened(url, **options):
        allowed.append(url)
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        page = context.new_page()
        page.on(
            "console", lambda message: problems.append(message.text) if message.type in {"error", "warning"} else None
        )
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(url) else problems.append(request.url))
        page.goto(url)
        yield page
        context.close()

    yield opened
    assert problems == []
