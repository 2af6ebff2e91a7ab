"""Puts the site's pages together in one folder, laid out as the repository is, so that the links between documents hold.

    index.md, errata.md, tables.md, api/*.rst    written here
    solutions/NN_name.ipynb                      the executed chapters; answers and plotting helpers are folded away
    README.md ... docs/**  datasets/*.md         as they are, with the files that they link to; in Korean NAME.ko.md as NAME.md
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nbformat
import words
from pages import api, errata, tables

from course.classroom import translate

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
OTHER = re.compile(r"^\[(?:한국어|English)\]\(\S+\.md\)\n\n", re.M)       # each page of the site has a link to its other language
TOCTREE = re.compile(r"^```\{toctree\}\n(.*?)^```$", re.M | re.S)
ELSEWHERE = {"datasets": "datasets/README.md", "solutions": "chapters.md", "notebooks": "chapters.md", "docs": "index.md",
             "docs/tables/cpu/README.md": "tables.md"}         # what has a page of another name


def stage(out: Path, language: str = "en") -> Path:
    """Write all sources of the site in a language to `out`, which is emptied; returns it. What is not translated is English."""
    t = words.translator(language)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    documents = [ROOT / name for name in DOCUMENTS if (ROOT / name).is_file()]
    documents += [p for p in sorted((ROOT / "docs").rglob("*.md")) if ".ko." not in p.name
                  and not {HERE, ROOT / "docs" / "tables"} & {*p.parents}]              # (the tables have a page, tables.md)
    documents += sorted((ROOT / "datasets").glob("*.md"))
    for path in documents:
        document(path, out, language)
    names = [chapter(path, out, language, t) for path in sorted((ROOT / "solutions").glob("[0-9][0-9]_*.ipynb"))]
    entry = words.translated(HERE / "index.md", language).read_text("utf-8")
    for link, _ in LINK.findall(entry):                        # its pictures lie where they are in the repository
        if (ROOT / link).is_file() and not link.endswith(".md"):
            copy(ROOT / link, out)
    pages = {"index.md": entry, "chapters.md": contents(names, t), "reading.md": reading(documents, entry, t),
             "errata.md": errata.page(), "tables.md": tables.page(ROOT, out), **api.pages()}
    for name, text in pages.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, "utf-8")
    return out


def document(path: Path, out: Path, language: str) -> None:
    """Copy a document, in that language where there is one, and what it links to. A link to a folder becomes one to its page."""
    def target(found: re.Match) -> str:
        link, anchor = found[1], found[2] or ""
        if "://" in link or link.startswith("mailto:"):
            return found[0]
        there = (path.parent / link).resolve()
        inside = there.relative_to(ROOT).as_posix() if there.is_relative_to(ROOT) else ""
        if inside in ELSEWHERE:
            up = "../" * (len(path.relative_to(ROOT).parts) - 1)
            return f"]({up}{ELSEWHERE[inside]})"
        if there.is_dir() and inside:
            files = sorted(p for p in there.iterdir() if p.is_file())
            for file in files:
                copy(file, out)
            listing = [f"- [{file.name}]({file.name})" for file in files]
            page = "\n".join(["---", "orphan: true", "---", f"# Files of {inside}", "", *listing, ""])
            (out / inside / "index.md").write_text(page, "utf-8")
            return f"]({link.rstrip('/')}/index.md)"
        if there.is_file() and there.suffix != ".md":
            copy(there, out)
        return f"]({link.removesuffix('.ko.md')}.md{anchor})" if link.endswith(".ko.md") else f"]({link}{anchor})"

    place = out / path.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    text = OTHER.sub("", words.translated(path, language).read_text("utf-8"), count=1)
    place.write_text(LINK.sub(target, text), "utf-8")


def copy(path: Path, out: Path) -> None:
    place = out / path.relative_to(ROOT)
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)


def chapter(path: Path, out: Path, language: str, t: Callable[[str], str]) -> str:
    """Copy an executed chapter, with answers and helpers to be folded; returns the name of its page."""
    notebook = translate.read(path, language)
    for cell in notebook["cells"]:
        tags = cell["metadata"].setdefault("tags", [])
        kind = cell["metadata"].get("course", {}).get("role") or next((tag for tag in tags if tag in words.FOLDED), None)
        if cell["cell_type"] == "code" and kind in words.FOLDED:
            tags.append("hide-input")
            show, hide = map(t, words.FOLDED[kind])
            cell["metadata"]["mystnb"] = {"code_prompt_show": show, "code_prompt_hide": hide}
    place = out / "solutions" / path.name
    place.parent.mkdir(exist_ok=True)
    place.write_text(nbformat.writes(notebook), "utf-8")
    return f"solutions/{path.stem}"


def contents(chapters: list[str], t: Callable[[str], str]) -> str:
    return "\n".join([f"# {t(words.CHAPTERS)}", "", t(words.ABOUT_CHAPTERS), "",
                      "```{toctree}", ":maxdepth: 1", "", *chapters, "```", ""])


def reading(documents: list[Path], entry: str, t: Callable[[str], str]) -> str:
    """A page that lists what has no place of its own in the index."""
    placed = set(re.findall(r"^(?:.* <)?([\w/]+)>?$", "\n".join(TOCTREE.findall(entry)), re.M))
    names = [p.relative_to(ROOT).with_suffix("").as_posix() for p in documents]
    return "\n".join([f"# {t(words.DOCUMENTS)}", "", t(words.ABOUT_DOCUMENTS), "",
                      "```{toctree}", ":maxdepth: 1", "", *(name for name in names if name not in placed), "```", ""])
