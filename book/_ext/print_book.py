"""Print the built book as one PDF: ``print_book.py SITE TARGET``, with a headless Chromium.

The articles, in the order of the table of contents, are put into one page, so that links from one
chapter to another lead to the right place in the PDF. How they look on paper is said in
_static/book.css, in its part for print.
"""

import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, TextStringObject

ROOT = Path(__file__).resolve().parents[2]
HOST = "http://book.invalid/"
PRINTED = HOST + "printed.html"

# What only a screen can use: buttons, marks to copy a link from, the way to the source.
ON_SCREEN_ONLY = ".headerlink, .viewcode-link, .toggle-button, button, noscript"
# Code that the reader would have to unfold only draws.
FOLDED_CODE = "details.hide.above-input"

# A displayed formula that is wider than the paper is set smaller until it fits. What then still
# reaches beyond the paper is returned, and so is an image that is none.
FIT = """async () => {
  await MathJax.startup.promise;
  await document.fonts.ready;
  for (const formula of document.querySelectorAll("mjx-container[display=true]")) {
    const ratio = formula.clientWidth / formula.scrollWidth;
    if (ratio < 1) formula.style.fontSize = `${Math.floor(100 * ratio)}%`;
  }
  const over = (e) => e.getBoundingClientRect().right > innerWidth + 1;
  const spoken = "mjx-assistive-mml";
  return [...document.querySelectorAll(`main :not(${spoken}, ${spoken} *)`)]
    .filter((e) => e.matches("img") ? !e.naturalWidth : over(e) && !over(e.parentElement))
    .map((e) => e.outerHTML.slice(0, 120));
}"""


def config():
    """Return the settings of the book."""
    return yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))


def parts():
    """Return the table of contents: a caption, or None, with the pages under it."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [
        (part["caption"], [f"{chapter['file']}.html" for chapter in part["chapters"]])
        for part in toc["parts"]
    ]
    return [(None, [f"{toc['root']}.html"]), *listed]


def articles(site):
    """Return page by page the article, with names that are unique in the book and links to them."""
    found, names = {}, {}
    for _, pages in parts():
        for page in pages:
            soup = BeautifulSoup((site / page).read_text(encoding="utf-8"), "html.parser")
            found[page] = soup.select_one("article")
    for page, article in found.items():
        stem = Path(page).stem
        names[HOST + page, ""] = article["id"] = f"page-{stem}"
        taken = set(names.values())
        for tag in article.find_all(id=True):
            if (HOST + page, tag["id"]) in names:
                del tag["id"]  # Sphinx itself gives some names twice; links lead to the first
                continue
            name = f"{stem}-{tag['id']}" if tag["id"] in taken else tag["id"]
            names[HOST + page, tag["id"]] = name
            tag["id"] = name
    for page, article in found.items():
        prepare(article, HOST + page, names)
    return found


def prepare(article, address, names):
    """Make links and addresses right for their new place, and open what is folded."""
    for tag in article.select(f"{ON_SCREEN_ONLY}, {FOLDED_CODE}"):
        tag.decompose()
    for tag in article.select("details"):
        tag["open"] = ""
    for tag in article.select("[src]"):
        tag["src"] = urljoin(address, tag["src"])
    for tag in article.select("a[href]"):
        url, anchor = urldefrag(urljoin(address, tag["href"]))
        if (url, unquote(anchor)) in names:
            tag["href"] = "#" + names[url, unquote(anchor)]
        elif url.startswith(HOST):
            del tag["href"]  # a listing or a download: not in the PDF


def assemble(site, page_numbers):
    """Return the HTML of the whole book: cover, contents, articles."""
    title, author = config()["title"], config()["author"]
    first = BeautifulSoup((site / parts()[0][1][0]).read_text(encoding="utf-8"), "html.parser")
    chapters = articles(site)
    base = HOST + next(iter(chapters))
    head = [
        f'<link rel="stylesheet" href="{urljoin(base, link["href"])}">'
        for link in first.select("link[rel=stylesheet]")
    ]
    for script in first.select("script"):
        if "mathjax" in script.get("src", ""):
            head.append(f'<script defer src="{urljoin(base, script["src"])}"></script>')
        elif "window.MathJax" in script.get_text():
            head.append(str(script))
    lines = []
    for caption, pages in parts():
        lines += [f'<li class="part">{caption}</li>'] if caption else []
        for page in pages:
            name, heading = chapters[page]["id"], chapters[page].h1.get_text()
            number = page_numbers.get(name, "")
            lines.append(f'<li><a href="#{name}">{heading}</a><span>{number}</span></li>')
    return f"""<!DOCTYPE html>
<html lang="en" data-theme="light">
<head>
<meta charset="utf-8">
<title>{title}</title>
{"".join(head)}
</head>
<body class="printed">
<header>
<p class="printed-title">{title}</p>
<p>{author}</p>
<p>Version {version("wsr")}</p>
</header>
<nav aria-label="Contents">
<p class="printed-title">Contents</p>
<ul>{"".join(lines)}</ul>
</nav>
<main>{"".join(map(str, chapters.values()))}</main>
</body>
</html>"""


def print_page(tab, html, site, target):
    """Print the HTML, which takes what it needs from the site and from nowhere else."""
    missing = []

    def answer(route):
        path = site / unquote(urlsplit(route.request.url).path).lstrip("/")
        if route.request.url == PRINTED:
            route.fulfill(body=html, content_type="text/html")
        elif route.request.url.startswith(HOST) and path.is_file():
            route.fulfill(path=path)
        else:
            missing.append(route.request.url)
            route.abort()

    tab.route("**/*", answer)
    tab.goto(PRINTED, wait_until="load")
    misfits = tab.evaluate(FIT)
    if missing or misfits:
        sys.exit(f"missing from the book: {missing}\nempty or cut off: {misfits}")
    tab.pdf(path=target, prefer_css_page_size=True, outline=True, tagged=True)
    titles = tab.locator("h1, h2, h3, h4, h5, h6").all_inner_texts()
    tab.unroute_all()
    return titles


def entries(parent):
    """Return the entries of a PDF's outline, the subordinate ones too, in order."""
    entry = parent.get("/First")
    while entry is not None:
        yield entry.get_object()
        yield from entries(entry.get_object())
        entry = entry.get_object().get("/Next")


def finish(target, titles):
    """Give the outline the headings' texts: Chromium doubles some of them."""
    writer = PdfWriter(clone_from=target)
    for entry, title in zip(entries(writer.root_object["/Outlines"]), titles, strict=True):
        entry[NameObject("/Title")] = TextStringObject(" ".join(title.split()))
    writer.add_metadata({"/Author": config()["author"]})
    writer.write(target)


def print_book(site, target):
    """Print twice: the second time, the contents know on which page each chapter begins."""
    names = [os.environ["CHROMIUM"]] if "CHROMIUM" in os.environ else ["chromium", "google-chrome"]
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        sys.exit(f"no browser: {' and '.join(names)} not found (CHROMIUM may name another)")
    target.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=executable, args=flags)
        # As wide as the text on paper, which decides what formula is too wide.
        tab = browser.new_page(viewport={"width": 658, "height": 900})
        tab.set_default_timeout(120_000)
        tab.emulate_media(media="print")
        page_numbers = {}
        for _ in range(2):
            titles = print_page(tab, assemble(site, page_numbers), site, target)
            reader = PdfReader(target)
            page_numbers = {
                name.lstrip("/"): reader.get_destination_page_number(destination) + 1
                for name, destination in reader.named_destinations.items()
            }
        browser.close()
    finish(target, titles)


if __name__ == "__main__":
    site, target = map(Path, sys.argv[1:])
    if not (site / "index.html").is_file():
        sys.exit(f"no book in {site}: run `make book` first")
    print_book(site, target)
    print(f"The book is at {target.resolve()}")
