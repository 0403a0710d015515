"""The built pages work without a network: everything they load is a local file, and every local link leads somewhere.

`make test` builds the pages just before it runs this file.
"""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
HTML = ROOT / "_build" / "strict" / "_build" / "html"
PAGES = sorted(path for path in HTML.rglob("*.html") if HTML / "_static" not in path.parents)  # _static: templates

if not PAGES:
    pytest.skip(f"no book in {HTML}: `make test` builds it", allow_module_level=True)

# The attribute with which an element loads something as soon as the page is shown.
LOADS = {"link": "href"} | dict.fromkeys(["script", "img", "iframe", "source", "video", "audio", "embed"], "src")


class Page(HTMLParser):
    """Collects what a page loads, links to and names, and its images."""

    def __init__(self, path):
        """Parse the file."""
        super().__init__()
        self.path, self.loads, self.links, self.ids, self.images = path, [], [], set(), []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get("id"):
            self.ids.add(attributes["id"])
        if tag == "img":
            self.images.append(attributes)
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        # A <link> to another page (next, prev, search, ...) loads nothing, but must lead somewhere too.
        if attributes.get(LOADS.get(tag)):
            self.loads.append(attributes[LOADS[tag]])

    def target(self, link):
        """The local file that a link leads to."""
        path = unquote(urlsplit(link).path)
        return (self.path.parent / path).resolve() if path else self.path


PARSED = {path: Page(path) for path in PAGES}


@pytest.fixture(params=PAGES, ids=lambda path: path.relative_to(HTML).as_posix())
def page(request):
    return PARSED[request.param]


def is_external(link):
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def test_page_loads_only_local_files(page):
    loads = [link for link in page.loads if not link.startswith("data:")]
    assert not [link for link in loads if is_external(link)]
    assert not [link for link in loads if not page.target(link).is_file()]


def test_style_sheets_load_only_local_files():
    for path in HTML.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", path.read_text()), path


def test_images_have_alternative_text(page):
    assert not [image.get("src") for image in page.images if not (image.get("alt") or "").strip()]


def test_local_links_lead_somewhere(page):
    for link in page.links:
        if is_external(link):
            continue
        target = page.target(link)
        assert target.is_file(), f"{link} leads to no file"
        fragment = unquote(urlsplit(link).fragment)
        if fragment and target in PARSED:
            assert fragment in PARSED[target].ids, f"{link} leads to no place in {target.name}"


def test_index_page_leads_to_the_front_page():
    redirection = re.search(r"url=([^\"]+)", (HTML / "index.html").read_text())
    assert (HTML / redirection[1]).is_file()


def test_pages_with_formulas_load_the_local_mathjax():
    formulas = [page for page in PARSED.values() if 'class="math ' in page.path.read_text()]
    assert formulas
    for page in formulas:
        assert any(page.target(link) == HTML / "_static/mathjax/tex-chtml.js" for link in page.loads), page.path
    assert (HTML / "_static/mathjax/tex-chtml.js").is_file()


# ------------------------------------------------------------------------------------- glossary and reference

CHAPTERS = [path for path in PAGES if (ROOT / "book" / f"{path.stem}.ipynb").is_file() and path.parent.name == "book"]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_links_each_word_of_the_glossary_once(path):
    link = r'href="glossary\.html#(term-[\w-]+)"><span class="xref std std-term book-word"'
    words = re.findall(link, path.read_text())
    assert words and len(words) == len(set(words))


def test_the_reference_has_the_short_surface_and_leads_to_the_chapters_and_back():
    reference = {path: PARSED[path] for path in PAGES if path.parent.name == "reference"}
    ids = set().union(*(page.ids for page in reference.values()))
    surface = (ROOT / "rmbook/__init__.py").read_text()
    for module, names in re.findall(r"^    from (rmbook\.[\w.]+) import (.+)$", surface, re.M):
        assert {f"{module}.{name.strip()}" for name in names.split(",")} <= ids
    theory = PARSED[HTML / "book/reference/theory.html"]
    assert "../how_large_a_step.html" in {link.partition("#")[0] for link in theory.links}
    links = {link for path in CHAPTERS for link in PARSED[path].links}
    assert "reference/theory.html#rmbook.theory.limit.limit_point" in links


def test_the_status_page_has_a_row_for_each_chapter():
    links = PARSED[HTML / "book/status.html"].links
    assert {f"{path.stem}.html" for path in CHAPTERS} <= set(links)
