"""The built book, a web server for it, a browser, and the book as a PDF."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"


def pytest_generate_tests(metafunc):
    """Run what takes a page once for every page of the built book."""
    if "page" not in metafunc.fixturenames:
        return
    # index.html only leads on to the first page; the rest of these are templates and downloads.
    no_pages = {"index.html", "_static", "_sources"}
    found = [path.relative_to(SITE) for path in sorted(SITE.rglob("*.html"))]
    pages = [path.as_posix() for path in found if path.parts[0] not in no_pages]
    if not pages:
        raise pytest.UsageError("no book in _build/html: run `make book` first")
    metafunc.parametrize("page", pages)


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serve files without a line of log for each."""

    def log_message(self, *args):
        """Say nothing."""


@pytest.fixture(scope="session")
def address():
    """Serve the book on this machine and return the address."""
    handler = functools.partial(QuietHandler, directory=SITE)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser():
    """Start a Chromium that sends nothing of its own."""
    names = [os.environ["CHROMIUM"]] if "CHROMIUM" in os.environ else ["chromium", "google-chrome"]
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        message = f"no browser: {' and '.join(names)} not found (CHROMIUM may name another)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    from playwright.sync_api import sync_playwright

    flags = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
    ]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture(params=["no-preference", "reduce"])
def tab(browser, address, request):
    """Open the page of the module's tests for a reader who minds motion, or does not."""
    with browser.new_context(reduced_motion=request.param) as context:
        tab = context.new_page()
        tab.goto(f"{address}/{request.module.PAGE}", wait_until="load")
        yield tab


@pytest.fixture(scope="session")
def pdf(browser, tmp_path_factory):
    """Print the book, as ``make pdf`` does, and return a reader of the PDF."""
    from pypdf import PdfReader

    target = tmp_path_factory.mktemp("pdf") / "wsr.pdf"
    script = ROOT / "book" / "_ext" / "print_book.py"
    run = subprocess.run([sys.executable, script, SITE, target], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return PdfReader(target)
