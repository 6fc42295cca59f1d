"""The rendered book keeps its promises: offline, no dead link, readable by eye and by ear.

Run by ``make check-book`` after ``make book``.
"""

import functools
import re
import subprocess
import sys
import unicodedata
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"

# What a browser loads by itself, tag by attribute.  A plain link outward is the reader's choice.
LOADING = {
    "script": ["src"],
    "img": ["src", "srcset"],
    "source": ["src", "srcset"],
    "iframe": ["src"],
    "video": ["src", "poster"],
    "audio": ["src"],
    "track": ["src"],
    "embed": ["src"],
    "object": ["data"],
    "input": ["src"],
    "image": ["href", "xlink:href"],
    "use": ["href", "xlink:href"],
}
# The values of a <link>'s rel that only relate pages to each other.
RELATING = {"index", "search", "next", "prev", "canonical", "author", "license", "help"}
OUTSIDE = re.compile(r"\s*(?:https?:)?//", re.IGNORECASE)
OUTSIDE_CSS = re.compile(r"(?:url\(|@import)\s*['\"]?\s*(?:https?:)?//[^)\s]*", re.IGNORECASE)
CSS_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)

SECONDS_A_CHAPTER = 60


@functools.cache
def soup(page):
    """Return the parsed page."""
    return BeautifulSoup((SITE / page).read_text(encoding="utf-8"), "html.parser")


@functools.cache
def anchors(page):
    """Return every name that a link into the page may use."""
    found = soup(page).find_all(lambda tag: tag.has_attr("id") or tag.name == "a")
    return {tag.get(key) for tag in found for key in ("id", "name")} - {None}


def sources():
    """Return the sources in the table of contents, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [toc["root"], *(entry["file"] for part in toc["parts"] for entry in part["chapters"])]


def chapters():
    """Return those of the sources that have code cells."""
    return [
        name
        for name in sources()
        if "{code-cell}" in (ROOT / f"{name}.md").read_text(encoding="utf-8")
    ]


def outside_css(text):
    """Return what a style sheet would load from elsewhere."""
    return OUTSIDE_CSS.findall(CSS_COMMENT.sub("", text))


def test_page_loads_nothing_from_elsewhere(page):
    loaded = []
    for tag in soup(page).find_all(True):
        attributes = LOADING.get(tag.name, [])
        if tag.name == "link" and not RELATING.intersection(tag.get("rel", [])):
            attributes = ["href"]
        loaded += [tag[name] for name in attributes if OUTSIDE.match(tag.get(name, ""))]
        loaded += outside_css(tag.get("style", ""))
        if tag.name == "style":
            loaded += outside_css(tag.get_text())
    assert loaded == []


def test_style_sheets_load_nothing_from_elsewhere():
    loaded = {
        path.relative_to(SITE).as_posix(): outside_css(path.read_text(encoding="utf-8"))
        for path in SITE.rglob("*.css")
    }
    assert {path: urls for path, urls in loaded.items() if urls} == {}


def test_internal_links_resolve(page):
    dead = []
    for tag in soup(page).find_all(["a", "link"], href=True):
        link = urlsplit(tag["href"])
        if link.scheme or link.netloc:
            continue
        target = (SITE / page).parent / unquote(link.path) if link.path else SITE / page
        target = target.resolve()
        if not target.is_file():
            dead.append(tag["href"])
        elif link.fragment and target.suffix == ".html":
            names = anchors(target.relative_to(SITE).as_posix())
            if unquote(link.fragment) not in names:
                dead.append(tag["href"])
    assert dead == []


def test_images_have_alt_text(page):
    # Sphinx falls back on the file's name, which tells a listener nothing.
    silent = [
        tag["src"][:80]
        for tag in soup(page).find_all("img")
        if not tag.get("alt", "").strip()
        or PurePosixPath(urlsplit(tag["src"]).path).name in tag["alt"]
    ]
    assert silent == []


def test_theme_header_is_empty(page):
    assert soup(page).select("header.bd-header *") == []


def test_front_door_leads_to_the_first_page():
    refresh = soup("index.html").find("meta", attrs={"http-equiv": "Refresh"})
    target = re.search(r"url=(.+)$", refresh["content"]).group(1)
    assert (SITE / target).is_file()


@pytest.mark.parametrize("chapter", chapters())
def test_chapter_offers_its_executed_notebook(chapter):
    page = f"{chapter}.html"
    links = [a["href"] for a in soup(page).find_all("a", href=re.compile(r"\.ipynb$"))]
    assert len(links) == 1, "the download button offers no notebook"
    notebook = nbformat.read((SITE / page).parent / links[0], as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "a cell was not executed"
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs, "no cell shows anything"
    assert [output for output in outputs if output.output_type == "error"] == []


def test_status_lists_every_chapter_under_a_minute():
    seconds = {}
    for row in soup("book/status.html").select("article table tbody tr"):
        name, _, _, runtime, _ = (cell.get_text(strip=True) for cell in row.find_all("td"))
        seconds[name] = float(runtime)
    assert sorted(seconds) == sorted(chapters())
    assert {name: t for name, t in seconds.items() if t >= SECONDS_A_CHAPTER} == {}


# What reaches over the right edge of the window and lies in no box that scrolls: the outermost such
# elements, a formula by its TeX.  (A long formula in a line belongs into a display, which scrolls.)
CUT_OFF = """() => {
  const scrolls = (e) => /auto|scroll/.test(getComputedStyle(e).overflowX);
  const boxed = (e) => e !== null && (scrolls(e) || boxed(e.parentElement));
  const over = (e) => e.checkVisibility() && e.getBoundingClientRect().right > innerWidth + 1;
  const formulas = new Map([...(window.MathJax?.startup.document.math ?? [])]
    .map((item) => [item.typesetRoot, item.math]));
  return [...document.querySelectorAll("article :not(mjx-assistive-mml, mjx-assistive-mml *)")]
    .filter((e) => over(e) && !over(e.parentElement) && !boxed(e.parentElement))
    .map((e) => formulas.get(e) ?? formulas.get(e.firstElementChild) ?? e.outerHTML.slice(0, 120));
}"""

# Formulas that MathJax left as they are, gave up on, or typeset with an unknown command in red.
UNTYPESET = """async () => {
  if (window.MathJax?.startup) await MathJax.startup.promise;
  return [...document.querySelectorAll("article .math, mjx-merror, mtext[mathcolor=red]")]
    .filter((e) => !e.matches(".math") || !e.querySelector("mjx-container"))
    .map((e) => e.outerHTML.slice(0, 200));
}"""


@pytest.mark.parametrize("width", [1280, 390])
def test_page_in_a_browser(browser, address, page, width):
    complaints, requested = [], []
    local = (address, "data:", "blob:")
    with browser.new_context(viewport={"width": width, "height": 844}) as context:
        tab = context.new_page()
        tab.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requested.append(request.url))
        tab.goto(f"{address}/{page}", wait_until="load")
        untypeset = tab.evaluate(UNTYPESET)
        tab.wait_for_load_state("networkidle")
        cut_off = tab.evaluate(CUT_OFF)
        page_width = tab.evaluate("document.documentElement.scrollWidth")
    faults = {
        "console errors": complaints,
        "requests elsewhere": [url for url in requested if not url.startswith(local)],
        "formulas not typeset": untypeset,
        "cut off at the right": cut_off,
        "page wider than the window": [page_width] if page_width > width else [],
    }
    assert {name: found for name, found in faults.items() if found} == {}


# Opens what is folded, as a reader does.  The theme takes 0.3 s to measure what then scrolls, and
# what fades in has no contrast before it is there.
UNFOLD = """async () => {
  if (window.MathJax?.startup) await MathJax.startup.promise;
  const folded = "article details:not([open]) > summary, article .toggle-button-hidden";
  for (const handle of document.querySelectorAll(folded)) handle.click();
  await new Promise((resolve) => setTimeout(resolve, 500));
  await Promise.all(document.getAnimations().map((animation) => animation.finished));
}"""


def test_page_is_accessible(browser, address, page):
    with browser.new_context(viewport={"width": 1280, "height": 844}) as context:
        tab = context.new_page()
        tab.goto(f"{address}/{page}", wait_until="load")
        tab.wait_for_load_state("networkidle")
        tab.evaluate(UNFOLD)
        violations = Axe().run(tab).response["violations"]
    faults = {
        f"{violation['id']} ({violation['impact']})": [
            (node["html"][:200], node["failureSummary"]) for node in violation["nodes"]
        ]
        for violation in violations
        if violation["impact"] != "minor"
    }
    assert faults == {}, page


def words(text):
    """Return the text without spaces and ligatures, of which a PDF has its own."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text))


def test_pdf_has_every_chapter_and_lists_it_in_its_outline(pdf):
    headings = [soup(f"{name}.html").select_one("article h1") for name in sources()]
    titles = [words(heading.get_text()) for heading in headings]
    entries = [entry for entry in pdf.outline if not isinstance(entry, list)]
    assert [words(entry.title) for entry in entries] == titles
    numbers = [pdf.get_destination_page_number(entry) for entry in entries]
    assert numbers == sorted(set(numbers))
    for number, title in zip(numbers, titles, strict=True):
        assert title in words(pdf.pages[number].extract_text())


def test_pdf_shows_every_figure_with_its_alt_text(pdf):
    shown, nodes = set(), [pdf.trailer["/Root"]["/StructTreeRoot"]]
    while nodes:
        node = nodes.pop().get_object()
        if isinstance(node, list):
            nodes += node
        elif isinstance(node, dict):
            if node.get("/S") == "/Figure":
                shown.add(node.get("/Alt"))
            if "/K" in node:
                nodes.append(node["/K"])
    pages = [soup(f"{name}.html") for name in sources()]
    images = [tag for page in pages for tag in page.select("article img:not(noscript img)")]
    assert images
    assert {tag["alt"] for tag in images} - shown == set()


def test_pdf_wants_a_built_book(tmp_path):
    script = ROOT / "book" / "_ext" / "print_book.py"
    command = [sys.executable, script, tmp_path / "html", tmp_path / "wsr.pdf"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1
    assert "run `make book` first" in run.stderr


def test_claims_name_tests_that_exist():
    named = re.findall(r"`(test_\w+)`", (ROOT / "book" / "claims.md").read_text(encoding="utf-8"))
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    assert named
    assert set(named) - set(re.findall(r"^def (test_\w+)\(", code, re.MULTILINE)) == set()
