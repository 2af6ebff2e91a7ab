"""The chapters in another language: each passage of prose has its translation in a catalogue; code exists once.

    notebooks/ko/05_forward_process.po      gettext's format, one entry a passage (a paragraph, a list, a table, a heading)
    course start my-notebooks --language ko      notebooks/05_forward_process.ipynb with those passages in place

The catalogue is made from the notebook, so write the English first (solutions/*.py, `course release`), then

    python -m course.classroom.translate ko            puts new passages in, marks those whose English changed as `fuzzy`
    python -m course.classroom.translate ko --check    names what is missing, stale or unlike the English; 1 where there is any

A passage that has no translation, or a fuzzy one, stays English. Babel, which JupyterLab brings, reads and writes the files.
"""

import argparse
import copy
import io
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import nbformat
from babel.messages import Catalog, pofile
from nbformat import NotebookNode

from course import files
from course.classroom.release import ROOT
from course.errors import UsageError

NOTEBOOKS = ROOT / "notebooks"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INLINE = re.compile(r"`[^`]+`")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FORMULA = re.compile(r"\$\$.+?\$\$|\$[^$]+\$", re.S)
TAG = re.compile(r"<[^>]+>")
HEADER = """# A chapter's prose. `python -m course.classroom.translate {0}` keeps it in step with the notebook.
msgid ""
msgstr ""
"Language: {0}\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"

"""                                             # no dates: the file changes where a passage does


def languages(source: Path = NOTEBOOKS) -> list[str]:
    """The languages that chapters can be read in, by their codes: English, and those that have a catalogue."""
    return ["en", *sorted({path.parent.name for path in source.glob("*/*.po")})]


def passages(text: str) -> list[str]:
    """A cell's text, cut at blank lines: what one entry of a catalogue translates. A fenced block is one passage."""
    found, lines, fenced = [], [], False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if line.strip() or fenced:
            lines.append(line)
        elif lines:
            found, lines = [*found, "\n".join(lines)], []
    return found + ["\n".join(lines)] * bool(lines)


def has_words(passage: str) -> bool:
    """Whether there is anything to translate: a word outside code, formulas and tags."""
    return re.search(r"[A-Za-z]{2}", bare(passage)) is not None


def bare(passage: str) -> str:
    """The passage as it is read: without code, formulas, tags and the targets of links."""
    for pattern, instead in ((FENCED, ""), (INLINE, "``"), (FORMULA, ""), (TAG, ""), (LINK, r"\2")):
        passage = pattern.sub(instead, passage)
    return passage


def prose(notebook: NotebookNode) -> dict[str, str]:
    """Passage -> where it stands first, in the chapter's order."""
    found: dict[str, str] = {}
    for cell in notebook.cells:
        for passage in passages(cell.source) if cell.cell_type == "markdown" else ():
            if has_words(passage):
                found.setdefault(passage, f"cell {cell.id}")
    return found


def load(path: Path) -> Catalog:
    """Raises UsageError where the file is no catalogue."""
    try:
        return pofile.read_po(io.BytesIO(path.read_bytes()), locale=path.parent.name, abort_invalid=True)
    except (OSError, ValueError, pofile.PoFileError) as error:
        raise UsageError(f"{path} is no catalogue of translations: {error}") from None


def translated(notebook: NotebookNode, catalogue: Catalog) -> NotebookNode:
    """The notebook with the catalogue's passages in place of its own. Code, outputs, ids and metadata stay."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = replaced(cell.source, catalogue)
    return notebook


def read(path: Path, language: str = "en") -> NotebookNode:
    """A chapter's notebook in a language. Raises UsageError for a language in which there is none."""
    if language not in (known := languages()):
        raise UsageError(f"the chapters are not there in {language!r}; expected one of {', '.join(known)}")
    notebook, place = nbformat.read(path, as_version=4), NOTEBOOKS / language / f"{path.stem}.po"
    return translated(notebook, load(place)) if place.is_file() else notebook


def replaced(text: str, catalogue: Catalog) -> str:
    parts = []
    for passage in passages(text):
        entry = catalogue.get(passage)
        parts.append(entry.string if entry and entry.string and not entry.fuzzy else passage)
    return "\n\n".join(parts)


def faults(wanted: Iterable[str], catalogue: Catalog) -> list[str]:
    """What a translation lacks, in words: passages that are missing, stale, or do not say what the English says."""
    wanted = list(wanted)
    found = [f"not in the English any more: {_start(entry.id)}" for entry in catalogue if entry.id and entry.id not in wanted]
    for passage in wanted:
        own = catalogue.get(passage)
        if own is None or not own.string:
            found.append(f"not translated: {_start(passage)}")
        elif own.fuzzy:
            found.append(f"the English changed since: {_start(passage)}")
        else:
            found += [f"{fault}: {_start(passage)}" for fault in differences(passage, own.string)]
    return found


def differences(english: str, other: str) -> list[str]:
    """A translation keeps code, formulas, links and numbers, and the shape of its Markdown."""
    found = [f"{name}: {_more(ours, theirs)}" for name, facts in FACTS.items()
             if Counter(ours := facts(english)) != Counter(theirs := facts(other))]
    missing = Counter(numbers(bare(english))) - Counter(numbers(bare(other)))       # a number written as a word may become digits
    return found + [f"numbers that are missing: {', '.join(missing)}"] * bool(missing) + \
        [f"left in English: {text!r}" for text in left_in_english(other)]


FACTS = {
    "fenced code": FENCED.findall,
    "code": lambda text: INLINE.findall(FENCED.sub("", text)),
    "formulas": lambda text: [re.sub(r"\s+", " ", formula) for formula in FORMULA.findall(INLINE.sub("", text))],
    "links": lambda text: [(kind, target) for kind, _, target in LINK.findall(text)],
    "tags": TAG.findall,
    "headings": lambda text: re.findall(r"^#+ ", text, re.M),
    "items of lists": lambda text: re.findall(r"^ *(?:-|\d+\.) ", text, re.M),
    "table": lambda text: [line.count("|") for line in text.splitlines() if line.startswith("|")],
}


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:[.,]\d+)*", text)


def left_in_english(passage: str) -> list[str]:
    """Four English words in a row, outside code, titles of papers (`*High-Resolution ...*`), quotations and `A et al.`."""
    text = re.sub(r'(?<!\*)\*[^*\n]+\*(?!\*)|"[^"\n]*"|[A-Za-z ]+ et al\.', "", bare(passage))
    return re.findall(r"(?:[A-Za-z][A-Za-z'-]*\s+){3,}[A-Za-z'-]+", text)


def _more(ours: list, theirs: list) -> str:
    more, less = Counter(ours) - Counter(theirs), Counter(theirs) - Counter(ours)
    return f"only the English has {list(more)}, only the translation {list(less)}"


def _start(passage: str) -> str:
    line = " ".join(passage.split())
    return repr(line if len(line) <= 60 else line[:57] + "...")


def update(path: Path, wanted: dict[str, str]) -> None:
    """Bring a catalogue in step with the English: what was translated is kept, a changed passage becomes fuzzy.

    One whose lines only break elsewhere has not changed. `wanted` maps each passage, in order, to where it stands.
    """
    catalogue, fresh = load(path) if path.is_file() else Catalog(locale=path.parent.name), Catalog(fuzzy=False)
    for passage, place in wanted.items():
        fresh.add(passage, auto_comments=[place])
    same = {" ".join(entry.id.split()): entry for entry in catalogue if entry.id}
    catalogue.update(fresh)                                                        # a near match of an old passage: fuzzy
    ordered = Catalog(locale=catalogue.locale, fuzzy=False)
    for passage, place in wanted.items():
        own = same.get(" ".join(passage.split()), catalogue[passage])
        ordered.add(passage, own.string, flags=own.flags, auto_comments=[place])
    text = io.BytesIO(HEADER.format(path.parent.name).encode())
    text.seek(0, io.SEEK_END)
    pofile.write_po(text, ordered, width=0, omit_header=True)
    files.write_bytes(path, text.getvalue())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m course.classroom.translate", description=__doc__.splitlines()[0])
    parser.add_argument("language", help="a code such as ko")
    parser.add_argument("chapters", nargs="*", help="numbers or names; all chapters where none is named")
    parser.add_argument("--check", action="store_true", help="change nothing, say what is missing")
    given = parser.parse_args(arguments)
    count = 0
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        if given.chapters and not any(path.name.startswith(name) for name in given.chapters):
            continue
        wanted, place = prose(nbformat.read(path, as_version=4)), path.parent / given.language / f"{path.stem}.po"
        if not given.check:
            update(place, wanted)
        for fault in faults(wanted, load(place)) if place.is_file() else ["no catalogue"]:
            print(f"{place.name}: {fault}")
            count += 1
    return int(given.check and count > 0)


if __name__ == "__main__":
    sys.exit(main())
