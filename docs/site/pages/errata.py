"""errata.md: where the article errs, from the data that the library ships."""

import re
from itertools import groupby


def page() -> str:
    """One section for each of the article's; whether an entry holds is computed while the page is written."""
    from course.evaluation import errata
    entries = errata.entries()
    seen = {e.id: e.holds() for e in entries}
    shown = sum(value is True for value in seen.values())
    lines = ["# Where the article errs", "",
             f"The course follows an article, and corrects it: {len(entries)} entries, each with its source. {shown} of them",
             "are computed, by a function of `course.evaluation.errata`, from the library or from published tables, also when",
             "this page was made; the rest are read off the sources.", ""]
    for section, group in groupby(entries, key=lambda e: e.section):
        lines += [f"## {'Title' if section == 'title' else f'Section {section}'}", ""]
        for e in group:
            seen_here = {True: f"computed here: `{e.check}`", False: f"**not confirmed here**: `{e.check}`", None: ""}[seen[e.id]]
            lines += [sentence(e.says), f": {sentence(e.is_)}", "",
                      f"  *{plain(e.source)}*" + (f" · {seen_here}" if seen_here else ""), ""]
    return "\n".join(lines)


def plain(text: str) -> str:
    """Underscores and stars as they are, outside of code."""
    return "".join(part if i % 2 else part.replace("_", r"\_").replace("*", r"\*") for i, part in enumerate(split(text)))


def split(text: str) -> list[str]:
    return re.split(r"(`[^`]+`)", text)


def sentence(text: str) -> str:
    return plain(text[:1].upper() + text[1:])
