"""Chapters in Korean: nothing missing, nothing stale, and the same code, formulas, links and numbers as in the English."""

import re

import nbformat
import pytest
from typer.testing import CliRunner

from course import cli
from course.classroom import translate, working
from course.classroom.release import ROOT
from course.errors import UsageError

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
TEXT = """# A title

Some words with `code`, $x_1$ and 1,024 pictures,
on [two](a.md) lines.

```python
x = 1

y = 2
```

$$\\frac{1}{2}$$

- one thing
- another
"""


def chapter(*texts: str):
    cells = [nbformat.v4.new_markdown_cell(text) for text in texts]
    return nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell("1")])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_korean_is_whole_fresh_and_faithful(path):
    wanted = translate.prose(nbformat.read(path, as_version=4))
    assert not translate.faults(wanted, translate.load(path.parent / "ko" / f"{path.stem}.po")), \
        "`python -m course.classroom.translate ko` marks what changed"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_only_prose_differs(path):
    ours, theirs = translate.read(path), translate.read(path, "ko")
    assert [(c.id, c.cell_type, c.metadata) for c in ours.cells] == [(c.id, c.cell_type, c.metadata) for c in theirs.cells]
    changed = [c.id for c, k in zip(ours.cells, theirs.cells, strict=True) if c.source != k.source]
    assert changed == [c.id for c in ours.cells if c.cell_type == "markdown"]
    prose = "\n".join(translate.bare(c.source) for c in theirs.cells if c.cell_type == "markdown")
    assert len(re.findall("[가-힣]", prose)) > 4 * len(re.findall(r"\b[a-z]{3,}\b", prose))


def test_passages_are_cut_at_blank_lines_but_not_in_a_fence():
    assert translate.passages(TEXT) == ["# A title", "Some words with `code`, $x_1$ and 1,024 pictures,\non [two](a.md) lines.",
                                        "```python\nx = 1\n\ny = 2\n```", "$$\\frac{1}{2}$$", "- one thing\n- another"]
    assert "\n\n".join(translate.passages(TEXT)) + "\n" == TEXT
    assert list(translate.prose(chapter(TEXT))) == [translate.passages(TEXT)[i] for i in (0, 1, 4)]


GOOD = {"# A title": "# 제목", "- one thing\n- another": "- 하나\n- 둘",
        "Some words with `code`, $x_1$ and 1,024 pictures,\non [two](a.md) lines.":
            "`code`, $x_1$, 그림 1,024장이 [두](a.md) 줄에."}


def filled(tmp_path, words: dict[str, str], *texts: str):
    """A catalogue on disk with these translations, of a chapter with these texts."""
    from babel.messages import Catalog, pofile
    path = tmp_path / "ko" / "00_x.po"
    path.parent.mkdir(exist_ok=True)
    catalogue = Catalog(locale="ko", fuzzy=False)
    for english, korean in words.items():
        catalogue.add(english, korean)
    with path.open("wb") as file:
        pofile.write_po(file, catalogue)
    return path, translate.prose(chapter(*texts))


def test_a_translated_chapter_keeps_what_is_no_prose(tmp_path):
    path, wanted = filled(tmp_path, GOOD, TEXT)
    assert not translate.faults(wanted, translate.load(path))
    cell, code = translate.translated(chapter(TEXT), translate.load(path)).cells
    assert translate.passages(cell.source) == [GOOD.get(p, p) for p in translate.passages(TEXT)] and code.source == "1"


@pytest.mark.parametrize("old, new, said", [
    ("`code`", "`kode`", "code: only the English has ['code'"), ("$x_1$", "$x_2$", "formulas"), ("(a.md)", "(b.md)", "links"),
    ("1,024", "1,025", "numbers that are missing: 1,024"), ("- 둘", "둘", "items of lists"), ("# 제목", "제목", "headings"),
    ("# 제목", "# a title in plain English", "left in English"), ("# 제목", "", "not translated"),
    ("# 제목", "# <b>제목</b>", "tags")])
def test_each_way_to_be_unfaithful_is_named(tmp_path, old, new, said):
    changed = {english: korean.replace(old, new) for english, korean in GOOD.items()}
    assert changed != GOOD
    path, wanted = filled(tmp_path, changed, TEXT)
    faults = translate.faults(wanted, translate.load(path))
    assert len(faults) == 1 and faults[0].replace("`", "").startswith(said.replace("`", ""))


def test_a_changed_passage_becomes_fuzzy_stays_english_and_is_named(tmp_path):
    path, wanted = filled(tmp_path, GOOD, TEXT)
    changed = TEXT.replace("- another", "- another one")
    wanted = translate.prose(chapter(changed, "A new passage."))
    assert [f.split(":")[0] for f in translate.faults(wanted, translate.load(path))] == \
        ["not in the English any more", "not translated", "not translated"]
    translate.update(path, wanted)
    catalogue = translate.load(path)
    assert translate.faults(wanted, catalogue) == ["the English changed since: '- one thing - another one'",
                                                   "not translated: 'A new passage.'"]
    assert "- another one" in translate.replaced(changed, catalogue) and "# 제목" in translate.replaced(changed, catalogue)
    before = path.read_bytes()
    translate.update(path, wanted)
    assert path.read_bytes() == before                         # in step: nothing changes, no date either


def test_a_passage_whose_lines_break_elsewhere_has_not_changed(tmp_path):
    path, _ = filled(tmp_path, GOOD, TEXT)
    wanted = translate.prose(chapter(TEXT.replace("pictures,\non", "pictures, on")))
    assert translate.faults(wanted, translate.load(path))
    translate.update(path, wanted)
    assert not translate.faults(wanted, translate.load(path))


def test_what_is_no_catalogue_is_said(tmp_path):
    path = tmp_path / "ko" / "00_x.po"
    path.parent.mkdir()
    path.write_text('msgid "a"\nwhat is this?\n')
    with pytest.raises(UsageError, match="no catalogue of translations"):
        translate.load(path)


def test_a_working_folder_in_korean(tmp_path):
    out = CliRunner().invoke(cli.app, ["start", str(tmp_path / "mine"), "--language", "ko"])
    assert out.exit_code == 0 and "17 notebooks copied" in out.output
    chapters = working.progress(tmp_path / "mine")
    assert chapters[5].title.startswith("05 · ") and re.search("[가-힣]", chapters[5].title)
    assert sum(len(c.exercises) for c in chapters) == sum(len(c.exercises) for c in working.progress(ROOT / "notebooks"))


def test_a_language_that_is_not_there_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="'xx'; expected one of en, ko"):
        working.start(tmp_path / "mine", language="xx")
    assert not (tmp_path / "mine").exists()


def test_the_command_says_what_is_missing(capsys):
    assert translate.main(["ko", "--check"]) == 0 and not capsys.readouterr().out
    assert translate.main(["eo", "05", "--check"]) == 1 and "no catalogue" in capsys.readouterr().out
