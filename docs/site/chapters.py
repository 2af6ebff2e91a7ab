"""A figure in a chapter gets the words that stand for it: alt/NN_name.json, by the heading that it stands under, in order."""

import html
import json
import re
from pathlib import Path

import words
from docutils import nodes
from sphinx.errors import ExtensionError
from sphinx.util import logging

HERE = Path(__file__).resolve().parent
HOVER = '<figure class="attention-hover"'                      # a figure that is HTML: classroom.attention_hover
log = logging.getLogger(__name__)


def is_figure(output: dict) -> bool:
    data = output.get("data", {})
    return any(kind.startswith("image/") for kind in data) or "".join(data.get("text/html", "")).startswith(HOVER)


def figures(notebook: dict) -> list[str]:
    """The nearest heading above each picture, in order."""
    found, heading = [], ""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            prose = re.sub(r"^```.*?^```", "", "".join(cell["source"]), flags=re.M | re.S)       # a comment is no heading
            heading = ([heading] + re.findall(r"^#+ +(.+)$", prose, re.M))[-1]
        found += [heading for output in cell.get("outputs", ()) if is_figure(output)]
    return found


def told(chapter: str, notebook: dict) -> list[str | None]:
    """What stands for each picture of a chapter; None where nobody has written it."""
    path = HERE / "alt" / f"{chapter}.json"
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    left = {heading: list(told) for heading, told in known.items()}
    return [left[heading].pop(0) if left.get(heading) else None for heading in figures(notebook)]


def describe(app, tree):
    """Put the words into the chapter that has just been read."""
    where = app.env.docname
    if not where.startswith("solutions/"):
        return
    pictures = [node for node in tree.findall(lambda node: isinstance(node, nodes.image | nodes.raw))
                if HOVER in node.astext() or "output" in str(node.get("uri")) or "jupyter_execute" in str(node.get("uri"))]
    chapter = where.removeprefix("solutions/")
    texts = told(chapter, json.loads((HERE.parents[1] / "solutions" / f"{chapter}.ipynb").read_text("utf-8")))
    if len(texts) != len(pictures):
        raise ExtensionError(f"{chapter}: {len(texts)} pictures in the notebook, {len(pictures)} on its page")
    t = words.translator(app.config.language)
    for number, (node, text) in enumerate(zip(pictures, texts, strict=True), 1):
        if text is None:
            log.warning("figure %d has no words in docs/site/alt/%s.json", number, chapter, location=where, type="alt")
        if isinstance(node, nodes.image):
            node["alt"] = t(text or "")
        else:                                                  # its first picture; the maps have their words before them
            shown = node.astext()
            said, told_as = re.search(r'alt="[^"]+"', shown)[0], f'alt="{html.escape(t(text or ""))}"'
            node.clear()
            node += nodes.Text(shown.replace(said, told_as, 1))


def setup(app):
    app.connect("doctree-read", describe)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
