"""The last hand on the pages: what Sphinx and the theme leave that a keyboard, a screen reader or a link checker trips over."""

import re
from pathlib import Path

BACK = re.compile(r'<a class="viewcode-back" href="([^"#]+)#([^"]+)">\[docs\]</a>')
PARAMETERS = re.compile(r"<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>", re.S)


def mended(text: str) -> str:
    """A page with: what can scroll reached by the keyboard; no heading without a level; no list that defines nothing."""
    text = text.replace("<pre>", '<pre tabindex="0">')
    text = re.sub(r'<div class="table-wrapper[^"]*"(?! tabindex)', r'\g<0> tabindex="0"', text)
    text = text.replace('<p class="caption" role="heading">', '<p class="caption">')
    # the parameters of a long signature, one a line
    return PARAMETERS.sub(lambda found: found[1].replace("<dd>", "<span class=\"parameter\">").replace("</dd>", "</span>"), text)


def pruned(path: Path, text: str, names: dict[Path, set[str]]) -> str:
    """A page of source, whose [docs] links are kept only where something stands at their other end.

    `viewcode` also writes one for what is not documented, and for what a package shows under a shorter name.
    """
    def keep(found: re.Match) -> str:
        there = (path.parent / found[1]).resolve()
        if there not in names:
            names[there] = set(re.findall(r'\sid="([^"]+)"', there.read_text("utf-8"))) if there.is_file() else set()
        return found[0] if found[2] in names[there] else ""
    return BACK.sub(keep, text)


def finish(app, error):
    if error or app.builder.format != "html":
        return
    names: dict[Path, set[str]] = {}
    for path in Path(app.outdir).rglob("*.html"):
        if "_static" not in path.parts and "_downloads" not in path.parts:
            text = pruned(path, mended(path.read_text("utf-8")), names)
            if path.stem.endswith(".ko"):                       # a page in Korean says so to screen readers, and gets its fonts
                text = text.replace('lang="en"', 'lang="ko"', 1)
            path.write_text(text, "utf-8")


def setup(app):
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
