"""A real browser, and a service for it to look at."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 30.0


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Chromium without a window; the test is skipped where there is none, or it does not start.

    All pages are tabs of one window: Chromium starts several processes for each window.
    """
    api = pytest.importorskip(
        "playwright.sync_api", reason="the page is tested with Playwright: pip install playwright"
    )
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("there is no Chromium in which to look at the page: apt-get install chromium")
    options = ["--no-sandbox"] if os.geteuid() == 0 else []  # as root it starts in no other way
    with api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=options)
        except api.Error as error:
            pytest.skip(f"{program} does not start here: {str(error).splitlines()[0]}")
        yield browser.new_context()
        browser.close()


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """The application on a free port of the loopback; its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    end = time.monotonic() + SECONDS
    while not server.started:
        assert time.monotonic() < end and thread.is_alive()
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(SECONDS)
