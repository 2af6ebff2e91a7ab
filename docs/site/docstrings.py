"""The library's docstrings are plain text, written to be read in the source. Here they become reStructuredText:

a paragraph stays one, with `names` set as code; lines that are all indented are drawings or tables, and are set as they are.
"""

import re
import textwrap

from sphinx.locale import get_translator

CODE = re.compile(r"(`[^`]+`)")
SPECIAL = re.compile(r"([\\*|_])")


def paragraph(text: str) -> str:
    """Code in single backticks; every sign that reStructuredText would take for markup is escaped elsewhere."""
    parts = CODE.split(text)
    return "".join(f" ``{part.strip('`')}``\\ " if i % 2 else SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts)).strip()


def blocks(lines: list[str]) -> list[list[str]]:
    """Runs of lines that are not empty; one also ends where the indentation begins or stops."""
    found, indented = [], None
    for line in lines:
        now = line.startswith(" ")
        if not line.strip():
            indented = None
        elif indented is not None and now == indented:
            found[-1].append(line)
        else:
            found.append([line])
            indented = now
    return found


def convert(lines: list[str]) -> list[str]:
    """The lines of a docstring -> those of reStructuredText."""
    made = []
    for block in blocks(lines):
        if block[0].startswith(" "):
            made += [".. code-block:: text", "", *textwrap.indent(textwrap.dedent("\n".join(block)), "   ").splitlines(), ""]
        elif block[0].lstrip().startswith(("- ", "* ")):
            made += [f"- {paragraph(item)}" for item in re.split(r"\n?[-*] ", " \n".join(block)) if item.strip()] + [""]
        else:
            made += [paragraph(" ".join(line.strip() for line in block)), ""]
    return made


def process(app, what, name, obj, options, lines):
    lines[:] = convert(list(lines))


def skip(app, what, name, obj, skipped, options):
    """A module's `forward` is shown for its signature, also where the class has said all in words."""
    return False if name == "forward" and callable(obj) else None


def spaced() -> None:
    """Sphinx's Korean for "alias of" has a letter right after a name, "%s의 별칭", where markup cannot end: `\\ ` between."""
    words = getattr(get_translator(), "_catalog", {})
    if "alias of %s" in words:
        words["alias of %s"] = re.sub(r"^%s(?=\w)", r"%s\\ ", words["alias of %s"])


def setup(app):
    spaced()
    app.connect("autodoc-process-docstring", process)
    app.connect("autodoc-skip-member", skip)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
