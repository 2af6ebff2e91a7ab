"""Formulas as MathML, made while the site is built: no script runs in the reader's browser, and no font comes from elsewhere.

STIX Two Math (SIL Open Font License 1.1) is cut down to the characters that occur, since not every system has a font that
can stretch brackets and roots. It is found inside the package `ziamath`, which ships it.
"""

import html
import logging as plain_logging
import re
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.util import logging

TEXT = re.compile(r"\\text\{([^{}]*)\}")
log = logging.getLogger(__name__)
latex = LatexToMathML(fancy_error=False)


def to_mathml(source: str, display: bool) -> str:
    """A formula -> <math>. A formula that cannot be read stays as it was written, and is a warning, which fails `make site`."""
    # MathJax, for which the chapters are written, takes an underscore inside \text{} as one; LaTeX wants it escaped
    source = TEXT.sub(lambda m: r"\text{" + re.sub(r"(?<!\\)_", r"\\_", m[1]) + "}", source.strip())
    try:
        made = latex.convert_with_local_state(source, displaystyle=display)
        return made.replace("<math", f'<math alttext="{html.escape(source)}"', 1)
    except LatexError as error:
        log.warning("formula %r: %s", source, error, type="mathml")
        return f"<code>{html.escape(source)}</code>"


def inline(translator, node):
    made = to_mathml(node.astext(), display=False)
    translator.builder.env.math_characters |= set(html.unescape(re.sub(r"<[^>]+>", "", made)))
    # on a phone it is a box that can scroll (site.css); a word joiner keeps the comma behind it on its line
    translator.body.append(f'<span class="formula">{made}</span>&#8288;')
    raise nodes.SkipNode


def display(translator, node):
    made = to_mathml(node.astext(), display=True)
    translator.builder.env.math_characters |= set(html.unescape(re.sub(r"<[^>]+>", "", made)))
    # a formula wider than a phone scrolls by itself; the page does not
    translator.body.append(f'<div class="formula" tabindex="0" role="group" aria-label="formula">{made}</div>\n')
    raise nodes.SkipNode


def font(app, error):
    """_static/math.woff with the characters of all formulas, and the variants of them that the font's MATH table knows."""
    if error or app.builder.format != "html":
        return
    from fontTools import subset
    plain_logging.getLogger("fontTools").setLevel(plain_logging.WARNING)
    source = Path(find_spec("ziamath").origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    options = subset.Options(flavor="woff", layout_features=["ssty", "kern", "dtls", "flac"], name_IDs=["*"], notdef_outline=True)
    with subset.load_font(str(source), options) as whole:
        cut = subset.Subsetter(options)
        # the slanted letters that a browser puts in place of plain ones, and the root, an element in MathML and no character
        slanted = [*range(0x1D434, 0x1D468), 0x210E, *range(0x1D6E2, 0x1D71C)]
        cut.populate(unicodes=[*range(0x20, 0x7F), *range(0x391, 0x3CA), *slanted, ord("√"),
                               *map(ord, getattr(app.env, "math_characters", ()))])
        cut.subset(whole)
        subset.save_font(whole, str(Path(app.outdir) / "_static" / "math.woff"), options)


def begin(app):
    app.env.math_characters = set()


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(display, None))
    app.connect("builder-inited", begin)
    app.connect("build-finished", font)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
