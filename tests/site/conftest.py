"""The built site, served on this machine alone, and a headless Chromium that looks at it. `make test-site` runs these tests."""

import functools
import http.server
import os
import shutil
import threading
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="session")
def folder() -> Path:
    """Where the site lies."""
    place = os.environ.get("COURSE_SITE")
    if not place:
        pytest.skip("`make test-site` runs it")
    path = Path(place).resolve()
    assert (path / "index.html").is_file(), f"no site in {path}: `make site` builds one"
    return path


@pytest.fixture(scope="session")
def soups(folder):
    """Page -> its parsed HTML, as it is before any script runs."""
    bs4 = pytest.importorskip("bs4", reason="needs the packages of .[site]")
    pages = {p.relative_to(folder).as_posix(): bs4.BeautifulSoup(p.read_text("utf-8"), "html.parser")
             for p in sorted(folder.rglob("*.html")) if "_static" not in p.parts and "_downloads" not in p.parts}
    assert len(pages) > 50
    return pages


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def address(folder):
    """The site's address on this machine."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="session")
def browser(folder):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the packages of .[site]")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no Chromium: none of {', '.join(BROWSERS)} is on the path, and CHROMIUM does not name one")
    with playwright.sync_playwright() as started:
        # root, as in a container, has no sandbox to open; what is shown is what we built
        root = hasattr(os, "geteuid") and os.geteuid() == 0
        chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser, address):
    """opened(width, scheme) -> a page that notes what goes wrong in `page.troubles`: errors, lost and foreign requests."""
    contexts = []

    def opened(width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page, troubles = context.new_page(), []
        page.on("console", lambda said: troubles.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        # a request that ends because the next page was opened is not lost
        page.on("requestfailed", lambda request: None if request.failure == "net::ERR_ABORTED"
                else troubles.append(f"lost: {request.url}, {request.failure}"))
        page.on("response", lambda answer: troubles.append(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)
        page.on("request", lambda request: None if request.url.startswith((address, "data:", "file:", "blob:"))
                else troubles.append(f"from elsewhere: {request.url}"))
        page.troubles = troubles
        return page

    yield opened
    for context in contexts:
        context.close()
