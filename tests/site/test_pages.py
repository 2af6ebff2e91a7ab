"""What the pages of the site hold, read from the files."""

import io
import json
import re
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = sorted((ROOT / "solutions").glob("[0-9][0-9]_*.ipynb"))
MAP = ".attention-hover span img"                              # a word's heat map, shown while the word is pointed at
FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$])\$(?! )([^$]+?)\$", re.S)


def targets(soup):
    for tag, name in (("a", "href"), ("link", "href"), ("img", "src"), ("script", "src"), ("source", "src")):
        for element in soup.find_all(tag):
            if element.get(name):
                yield tag, element[name]


def test_every_link_leads_somewhere(folder, soups):
    ids = {page: {e["id"] for e in soup.find_all(id=True)} for page, soup in soups.items()}
    lost = set()
    for page, soup in soups.items():
        for _, link in targets(soup):
            if urlparse(link).scheme:
                continue
            path, fragment = urldefrag(unquote(link))
            there = ((folder / page).parent / path.split("?")[0]).resolve() if path else folder / page
            there = there / "index.html" if there.is_dir() else there
            name = there.relative_to(folder).as_posix() if there.is_relative_to(folder) else None
            if name is None or not there.is_file() or (fragment and name in ids and fragment not in ids[name]):
                lost.add((page, link))
    assert not lost


def test_every_asset_is_local(folder, soups):
    foreign = {(page, link) for page, soup in soups.items() for tag, link in targets(soup)
               if tag != "a" and urlparse(link).scheme not in ("", "data")}
    assert not foreign
    for style in folder.rglob("*.css"):
        found = re.findall(r"(?:url\(|@import)\s*[\"']?(https?:|//)", style.read_text("utf-8"))
        assert not found, style


def test_every_figure_has_words(soups):
    silent = {(page, img["src"]) for page, soup in soups.items() for img in soup.select(f"img:not({MAP})")
              if len(img.get("alt", "").strip()) < 10 or img["alt"].endswith((".png", ".jpg"))}
    assert not silent
    for soup in soups.values():
        assert all(img["alt"] == "" and img.parent.get_text(strip=True) for img in soup.select(MAP))    # the word says it


def test_the_words_belong_to_figures_that_are_there():
    pytest.importorskip("docutils", reason="needs the packages of .[site]")
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    import chapters
    for path in CHAPTERS:
        drawn = Counter(chapters.figures(json.loads(path.read_text("utf-8"))))
        told = json.loads((ROOT / "docs" / "site" / "alt" / f"{path.stem}.json").read_text("utf-8"))
        assert {heading: len(texts) for heading, texts in told.items()} == drawn, path.stem


def test_headings_go_down_one_step_at_a_time(soups):
    for page, soup in soups.items():
        if page.endswith("search.html"):                      # a script writes its headings: test_browser looks at it
            continue
        levels = [int(h.name[1]) for h in (soup.find("article") or soup).find_all(re.compile("^h[1-6]$"))]
        assert levels[:1] == [1] and levels.count(1) == 1, page
        assert all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False)), (page, levels)


def test_each_chapter_is_there_with_its_figures_and_outputs(soups):
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    import chapters
    assert len(CHAPTERS) == 17
    for path in CHAPTERS:
        soup = soups[f"solutions/{path.stem}.html"]
        cells = json.loads(path.read_text("utf-8"))["cells"]
        drawn = sum(chapters.is_figure(o) for c in cells for o in c.get("outputs", ()))
        assert len(soup.select(f".cell_output img:not({MAP})")) == drawn > 0
        assert len(soup.select(".cell")) == sum(c["cell_type"] == "code" for c in cells)


def test_hints_and_answers_are_folded(soups):
    for path in CHAPTERS:
        soup = soups[f"solutions/{path.stem}.html"]
        cells = json.loads(path.read_text("utf-8"))["cells"]
        roles = [c["metadata"].get("course", {}).get("role") for c in cells]
        summaries = [s.get_text(" ", strip=True) for s in soup.find_all("summary")]
        hints = sum("".join(c["source"]).count("<summary>") for c in cells if c["cell_type"] == "markdown")
        assert sum(s.startswith("Hint") for s in summaries) == hints >= roles.count("hint") > 0
        assert sum(s.startswith("Show an answer") for s in summaries) == roles.count("solution")
        assert not soup.select("details[open]")


def test_every_formula_is_mathml(soups):
    for path in CHAPTERS:
        cells = json.loads(path.read_text("utf-8"))["cells"]
        texts = (re.sub(r"`[^`]*`", "", "".join(c["source"])) for c in cells if c["cell_type"] == "markdown")
        written = sum(len(FORMULA.findall(text)) for text in texts)
        shown = len(soups[f"solutions/{path.stem}.html"].find_all("math"))
        assert shown == written, path.stem


def test_the_font_knows_every_sign_of_the_formulas(folder, soups):
    ttlib = pytest.importorskip("fontTools.ttLib")
    font = ttlib.TTFont(io.BytesIO((folder / "_static" / "math.woff").read_bytes()))
    assert "MATH" in font and {ord("√"), 0x210E, 0x1D465} <= set(font.getBestCmap())       # root, slanted h and x
    needed = set()
    for soup in soups.values():
        for math in soup.find_all("math"):
            for element in math.find_all(["mi", "mo", "mn", "mtext"]):
                needed |= set(element.get_text())
    invisible = set(" \n\t\u2061\u2062\u2063\u2064\ufe00\u00a0")
    assert not {c for c in needed - invisible if ord(c) not in font.getBestCmap()}


def test_the_library_is_there(soups):
    from course import parts
    for part in parts.PARTS:
        module = part.split(".")[0]
        assert soups[f"api/{module}.html"].find(id=f"course.{part}"), part
    assert "(B,h,N,d)" in soups["api/attention.html"].get_text()


def test_every_erratum_is_there(soups):
    from course.evaluation import errata
    page = soups["errata.html"]
    assert len(page.select("article dl dt")) == len(errata.entries())
    assert "not confirmed here" not in page.get_text()


def test_made_tables_become_a_page(tmp_path):
    """The largest scale that is there counts; figures are copied; nothing is made up where nothing is there."""
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    from pages import tables
    out = tmp_path / "out"
    out.mkdir()
    assert "None has been made" in tables.page(tmp_path, out)
    result = {"verdict": "inconclusive", "why": "the intervals touch", "rows": [{"w": 1.5, "fd": 0.25}], "networks": {},
              "n": 1024, "seeds": 1, "device": "two cores", "seconds": 61.0, "date": "2026-01-02", "commit": "abc1234"}
    for scale, device in (("quick", "another machine"), ("cpu", "two cores")):
        made = tmp_path / "runs" / "tables" / scale / "F"
        made.mkdir(parents=True)
        (made / "table.json").write_text(json.dumps(result | {"device": device}), "utf-8")
    (made / "figure.png").write_bytes(b"not looked at")
    page = tables.page(tmp_path, out)
    assert "**Inconclusive**: the intervals touch" in page and "| 0.25 |" in page
    assert "1,024 pictures, 1 seed, two cores, 61 s, 2026-01-02, commit abc1234." in page and "another machine" not in page
    assert "### Published" in page and (out / "tables" / "F.png").is_file()


def test_the_sites_own_words_are_translated():
    sys.path.insert(0, str(ROOT / "docs" / "site"))
    import words

    from course.classroom import translate
    for language in set(words.LANGUAGES) - {"en"}:
        assert not translate.faults(words.wanted(), translate.load(ROOT / "docs" / "site" / language / "site.po"))


def test_each_page_leads_to_itself_in_the_other_language(soups):
    for page, soup in soups.items():
        there = page.removeprefix("ko/") if page.startswith("ko/") else f"ko/{page}"
        up = "../" * page.count("/")
        assert {a["href"] for a in soup.select("a.language")} == {up + there}, page
        assert soup.html["lang"] == ("ko" if page.startswith("ko/") else "en")


def test_the_korean_chapters_have_the_figures_the_formulas_and_korean_words(soups):
    for path in CHAPTERS:
        ours, theirs = soups[f"solutions/{path.stem}.html"], soups[f"ko/solutions/{path.stem}.html"]
        for what in (".cell_output img", "math", ".cell", "summary"):
            assert len(ours.select(what)) == len(theirs.select(what)), (path.stem, what)
        assert all(re.search("[가-힣]", img["alt"]) for img in theirs.select(f".cell_output img:not({MAP})"))
        assert len(re.findall("[가-힣]", theirs.article.get_text())) > 3000
        assert not theirs.article.get("lang") and soups["ko/docs/speed.html"].article["lang"] == "en"


def test_a_translated_document_is_korean_in_the_korean_site_and_stands_there_once(soups):
    from tests import test_translation
    documents = [name.removesuffix(".md") for name in test_translation.DOCUMENTS if not name.startswith("docs/site/")]
    assert "README" in documents and not [page for page in soups if ".ko." in page]
    for name in documents:
        ours, theirs = soups[f"{name}.html"], soups[f"ko/{name}.html"]
        english, korean = (len(re.findall("[가-힣]", soup.article.get_text())) for soup in (ours, theirs))
        assert english < 20 < korean, name
        assert not theirs.article.get("lang"), name
        for what in ("pre", "table tr", "img", "h2"):
            assert len(ours.article.select(what)) == len(theirs.article.select(what)), (name, what)


def test_the_theme_speaks_the_language_of_the_site(soups):
    for page in (p for p in soups if p.startswith("ko/")):
        said = [e[name] for e in soups[page].find_all(True) for name in ("aria-label", "title") if e.get(name)]
        assert not [text for text in said if re.match("Toggle|Link to this", text)], page
        for part in soups[page].select(".related-pages, .toc-title, .back-to-top, .skip-to-content"):
            assert not re.search("Next|Previous|Contents|On this page|Back to|Skip", part.get_text().split("·")[0]), page
