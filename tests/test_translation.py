"""NAME.ko.md says what NAME.md beside it says: the same headings, code, pictures, tables, figures and links; no section is stale.

Above each Korean heading stands which English section it translates, and a hash of that: `<!-- en: 3f2a91c0 Install -->`. Where
the English has changed since, the test names it. Translate it again; `python -m tests.test_translation README.md Install` then
renews the hash, unless something still differs. Without sections it says which are stale and what differs in the document,
without a document in all that are translated. A Korean document leads to Korean ones, where there are any.
"""

import hashlib
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"<!-- en: ([0-9a-f]{8}) (.+) -->")
FENCED = re.compile(r"^```(\w*|\{toctree\})\n(.*?)^```$", re.M | re.S)
INLINE = re.compile(r"`[^`]+`")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def translation(document: str) -> str:
    return document.removesuffix(".md") + ".ko.md"


def translated(root: Path) -> list[str]:
    """The documents, as paths below the root, beside which a translation stands."""
    every = [path.relative_to(root).as_posix() for path in [*root.glob("*.md"), *root.glob("docs/**/*.md")]]
    return sorted(path for path in every if translation(path) in every)


@dataclass
class Section:
    level: int
    heading: str
    source: str | None = None           # the mark above it: the English heading, ...
    made_from: str | None = None        # ... and the hash of what stood below it
    lines: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.lines).strip()

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()[:8]


def sections(text: str) -> list[Section]:
    """From each heading to the next. A line of a code block that begins with # is none."""
    found, mark, fenced = [], (None, None), False
    for line in text.splitlines():
        fenced ^= line.startswith("```")
        if not fenced and (m := MARK.fullmatch(line)):
            mark = m[2], m[1]
            continue
        if not fenced and (m := re.fullmatch(r"(#+) (.+)", line)):
            found.append(Section(len(m[1]), m[2], *mark))
            mark = None, None
        found[-1].lines.append(line)
    return found


def commands(language: str, code: str) -> list[str]:
    """What a code block does, without its comments. A block of no language is a tree of files: their names, without the words.

    A toctree of the site is the pages that it names, without their titles.
    """
    if language == "{toctree}":
        return [re.sub(r".* <(.+)>", r"\1", line) for line in code.splitlines() if not line.startswith(":caption:")]
    if not language:
        return [line.split()[0] for line in code.splitlines() if re.match(r" {0,2}\S", line)]
    return [re.sub(r"(^|\s+)# .*", "", line) for line in code.splitlines()]


def numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", text))


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]]


def facts(section: Section, document: list[Section]) -> dict[str, object]:
    """What a translation keeps as it is. A link to a heading counts as one to the section that the heading is of.

    One to a document's translation counts as one to the document.
    """
    headings = {"#" + re.sub(r"[^\w\- ]", "", s.heading.lower()).replace(" ", "-"): s.source or s.heading for s in document}
    prose = FENCED.sub("", section.text)
    links = [(kind, re.sub(r"\.ko\.md$", ".md", target)) for kind, _, target in LINK.findall(prose)]
    tables = [list(lines) for is_table, lines in groupby(prose.splitlines(), lambda line: line.startswith("|")) if is_table]
    return {
        "level of the heading": section.level,
        "code": [(language, commands(language, code)) for language, code in FENCED.findall(section.text)],
        "pictures": [target for kind, target in links if kind],
        "links": sorted(headings.get(t, f"no heading {t}") if t[0] == "#" else t for kind, t in links if not kind),
        "names in `...`": sorted(INLINE.findall(prose)),
        "rows of the tables": [len(table) for table in tables],
        "numbers in the tables": [[[numbers(cell) for cell in cells(row)] for row in table] for table in tables],
    }


def words(section: Section) -> str:
    """The text outside code and tables, without link targets: what remains of a paragraph to be read."""
    text = "\n".join(line for line in FENCED.sub("", section.text).splitlines() if not line.startswith("|"))
    return LINK.sub(r"\2", INLINE.sub("``", text))


def untranslated(section: Section) -> list[str]:
    """Four English words in a row, outside code and outside titles of papers, `*High-Resolution ...*`."""
    tables = "\n".join(line for line in section.lines if line.startswith("|"))
    text = re.sub(r"(?<!\*)\*[^*\n]+\*(?!\*)", "", words(section) + "\n" + INLINE.sub("``", tables))
    return re.findall(r"(?:[A-Za-z][A-Za-z'-]*\s+){3,}[A-Za-z'-]+", text)


def astray(section: Section, document: str, documents: list[str]) -> list[str]:
    """Links of a document's translation that lead to the English where a translation is. One leads to its own English."""
    place = os.path.dirname(document)
    return [target for kind, _, target in LINK.findall(FENCED.sub("", section.text)) if not kind
            and (there := os.path.normpath(os.path.join(place, target)).replace("\\", "/")) in documents and there != document]


def differences(english: list[Section], korean: list[Section], heading: str, document: str = "README.md",
                documents: list[str] | None = None) -> list[str]:
    """What the translation of one section of a document lacks, in words; nothing where it says the same."""
    section = next(s for s in english if s.heading == heading)
    own = next((s for s in korean if s.source == heading), None)
    if own is None:
        return [f"there is no section under <!-- en: {section.hash} {heading} -->"]
    ours, theirs = facts(section, english), facts(own, korean)
    found = [f"{what}: {first_difference(ours[what], theirs[what])}" for what in ours if ours[what] != theirs[what]]
    missing = Counter(numbers(words(section))) - Counter(numbers(words(own)))     # (words may become digits)
    found += [f"numbers of the text that are missing: {', '.join(missing)}"] if missing else []
    found += [f"leads to the English: {target}" for target in astray(own, document, documents or [])]
    return found + [f"not translated: {passage!r}" for passage in untranslated(own)]


def first_difference(ours, theirs) -> str:
    """The innermost pair that differs, where both are lists of one length; else what one has more often than the other."""
    while isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        ours, theirs = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
    if isinstance(ours, list) and isinstance(theirs, list):
        more = [x for i, x in enumerate(ours) if ours[:i + 1].count(x) > theirs.count(x)]
        less = [x for i, x in enumerate(theirs) if theirs[:i + 1].count(x) > ours.count(x)]
        return f"only the English has {more}, only the Korean {less}"
    return f"{ours!r} in English, {theirs!r} in Korean"


def pair(document: str) -> tuple[list[Section], list[Section]]:
    """The sections of a document, and of its translation."""
    english, korean = ((ROOT / name).read_text("utf-8") for name in (document, translation(document)))
    return sections(english), sections(korean)


DOCUMENTS = translated(ROOT)
HEADINGS = {document: [section.heading for section in pair(document)[0]] for document in DOCUMENTS}


def test_what_is_read_in_korean_from_the_first_page_on_is_translated():
    """A document that is moved or renamed takes its translation along."""
    assert {"README.md", "docs/site/index.md", "docs/install.md", "docs/chapters.md", "docs/commands.md"} <= set(DOCUMENTS)
    alone = [path for path in ROOT.glob("docs/**/*.ko.md") if not path.with_name(path.name.replace(".ko.md", ".md")).exists()]
    assert not alone, "of no English document"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_headings_are_those_of_the_english_in_its_order(document):
    english, korean = pair(document)
    assert len(set(HEADINGS[document])) == len(HEADINGS[document])
    assert [(s.level, s.source) for s in korean] == [(s.level, s.heading) for s in english]


@pytest.mark.parametrize("document, heading", [(document, heading) for document in DOCUMENTS for heading in HEADINGS[document]])
def test_the_translation_says_the_same(document, heading):
    assert not differences(*pair(document), heading, document, DOCUMENTS)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_translation_is_of_the_present_english(document):
    changed = stale(*pair(document))
    assert not changed, f"changed in {document} since it was translated: {changed}; what to do is said at the head of this file"


def stale(english: list[Section], korean: list[Section]) -> list[str]:
    """The sections whose English is not what was translated."""
    now = {section.heading: section.hash for section in english}
    return [section.source or section.heading for section in korean if now.get(section.source) != section.made_from]


A, B = ("""# One
[한국어](README.ko.md), see [Two](#two) and `a.py`. It took 1,024 pictures.
```bash
# a comment
make demo    # all of it
```
## Two
![alt](a.png)
| part | right |
|---|---|
| one of 3 | 9.5 % |
```
course/      components
  data/      pictures
             that are drawn
```
""", """<!-- en: 00000000 One -->
# 하나
[English](README.md), [둘](#둘)과 `a.py`를 보세요. 그림 1,024장이 들었습니다.
```bash
# 설명
make demo    # 모두
```
<!-- en: 00000000 Two -->
## 둘
![그림](a.png)
| 부분 | 맞음 |
|---|---|
| 3 중 하나 | 9.5 % |
```
course/      구성 요소
  data/      그려지는 그림
```
""")


def test_a_faithful_translation_has_no_differences():
    assert not differences(sections(A), sections(B), "One") and not differences(sections(A), sections(B), "Two")


@pytest.mark.parametrize("old, new, heading, kind", [
    ("make demo ", "make lab ", "One", "code"),
    ("```bash", "```bat", "One", "code"),
    ("`a.py`", "`b.py`", "One", "names in"),
    ("1,024", "1,025", "One", "numbers of the text"),
    ("(#two)", "(#three)", "One", "links"),
    ("(#two)", "(#one)", "One", "links"),
    ("(README.ko.md)", "(README.de.md)", "One", "links"),
    ("## Two", "### Two", "Two", "level"),
    ("9.5 %", "9.6 %", "Two", "numbers in the tables"),
    ("one of 3", "one", "Two", "numbers in the tables"),
    ("|---|---|\n", "|---|---|\n| x | y |\n", "Two", "rows of the tables"),
    ("  data/", "  date/", "Two", "code"),
    ("(a.png)", "(b.png)", "Two", "pictures"),
    ("## Two", "## New\n\n## Two", "New", "there is no section"),
])
def test_a_change_of_the_english_is_found(old, new, heading, kind):
    assert old in A
    english, korean = sections(A.replace(old, new, 1)), sections(B)
    found = {s.heading: differences(english, korean, s.heading) for s in english}
    assert found[heading][0].startswith(kind)
    assert [name for name, said in found.items() if said] == [heading]


def test_a_korean_document_that_leads_to_the_english_is_found():
    korean = B.replace("(README.md), ", "(README.md), [설치](docs/install.md), ")
    english = A.replace("(README.ko.md), ", "(README.ko.md), [install](docs/install.md), ")
    one = sections(english), sections(korean), "One", "README.md"
    assert not differences(*one, ["README.md"])
    assert differences(*one, ["README.md", "docs/install.md"]) == ["leads to the English: docs/install.md"]
    other = sections(english), sections(korean.replace("install.md", "install.ko.md")), "One", "README.md"
    assert not differences(*other, ["README.md", "docs/install.md"])


def test_a_toctree_keeps_its_pages_and_may_change_their_titles():
    tree = "# One\n```{toctree}\n:hidden:\n:caption: Learn\n\nchapters\n```\n"
    korean = "<!-- en: 00000000 One -->\n" + tree.replace("Learn", "배우기").replace("\nchapters", "\n각 장 <chapters>")
    assert not differences(sections(tree), sections(korean), "One")
    assert differences(sections(tree), sections(korean.replace("<chapters>", "<errata>")), "One")[0].startswith("code")


@pytest.mark.parametrize("passage", ["The loss is the mean error.", "| 부분 | what the model draws |"])
def test_what_is_left_in_english_is_found(passage):
    korean = sections(B.replace("## 둘\n", f"## 둘\n{passage}\n"))
    assert untranslated(korean[1]) and not untranslated(korean[0])


def test_a_changed_word_makes_its_section_stale_until_it_is_renewed():
    korean = renewed(B, sections(A), ["One", "Two"])
    changed = sections(A.replace("It took", "It has taken"))
    assert stale(sections(A), sections(B)) == ["One", "Two"]
    assert stale(sections(A), sections(korean)) == []
    assert stale(changed, sections(korean)) == ["One"]
    assert stale(changed, sections(renewed(korean, changed, ["One"]))) == []
    assert stale(changed, sections(renewed(korean, changed, ["Two"]))) == ["One"]


def renewed(translation: str, english: list[Section], headings: list[str]) -> str:
    """The translation with the present hashes above these sections."""
    now = {section.heading: section.hash for section in english if section.heading in headings}
    mark = "<!-- en: {} {} -->".format
    for section in sections(translation):
        if section.source in now:
            translation = translation.replace(mark(section.made_from, section.source), mark(now[section.source], section.source))
    return translation


def main(arguments: list[str]) -> int:
    """[document [sections ...]] -> 0: all well, 1: something is stale or differs, 2: no such document or section."""
    documents, headings = arguments[:1] or DOCUMENTS, arguments[1:]
    if documents[0] not in DOCUMENTS:
        print(f"no translation of {documents[0]}; there are those of {', '.join(DOCUMENTS)}", file=sys.stderr)
        return 2
    if unknown := set(headings) - set(HEADINGS[documents[0]]):
        print(f"{documents[0]} has no section {sorted(unknown)}; it has {HEADINGS[documents[0]]}", file=sys.stderr)
        return 2
    return max(say(document, headings) for document in documents)


def say(document: str, headings: list[str]) -> int:
    """Print what is to be done in a document's translation; if that is nothing, renew the hashes of the sections named."""
    english, korean = pair(document)
    found = {heading: differences(english, korean, heading, document, DOCUMENTS) for heading in headings or HEADINGS[document]}
    for heading, said in found.items():
        for line in said:
            print(f"{document}, {heading}: {line}")
    if headings and not any(found.values()):
        from course import files  # here, since it brings torch
        path = ROOT / translation(document)
        files.write_bytes(path, renewed(path.read_text("utf-8"), english, headings).encode())
        return 0
    changed = [] if headings else stale(english, korean)
    for heading in changed:
        print(f"{document}, {heading}: changed since it was translated")
    return int(bool(changed) or any(found.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
