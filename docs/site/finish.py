"""The last hand on the pages: what Sphinx and the theme leave that a keyboard, a screen reader or a link checker trips over."""

import re
from collections.abc import Callable
from pathlib import Path

import words

ROOT = Path(__file__).resolve().parents[2]
TRANSLATED = ("index.html", "chapters.html", "reading.html", "search.html", "genindex.html")       # beside chapters and documents
BACK = re.compile(r'<a class="viewcode-back" href="([^"#]+)#([^"]+)">\[[^<\]]+\]</a>')        # [docs], [문서]
PARAMETERS = re.compile(r"<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>", re.S)


def mended(text: str) -> str:
    """A page with: what can scroll reached by the keyboard; no heading without a level; no list that defines nothing."""
    text = text.replace("<pre>", '<pre tabindex="0">')
    text = re.sub(r'<div class="table-wrapper[^"]*"(?! tabindex)', r'\g<0> tabindex="0"', text)
    text = text.replace('<p class="caption" role="heading">', '<p class="caption">')
    # the parameters of a long signature, one a line
    return PARAMETERS.sub(lambda found: found[1].replace("<dd>", "<span class=\"parameter\">").replace("</dd>", "</span>"), text)


def pruned(path: Path, text: str, names: dict[Path, set[str]]) -> str:
    """A page of source, whose links back, [docs], are kept only where something stands at their other end.

    `viewcode` also writes one for what is not documented, and for what a package shows under a shorter name.
    """
    def keep(found: re.Match) -> str:
        there = (path.parent / found[1]).resolve()
        if there not in names:
            names[there] = set(re.findall(r'\sid="([^"]+)"', there.read_text("utf-8"))) if there.is_file() else set()
        return found[0] if found[2] in names[there] else ""
    return BACK.sub(keep, text)


def switch(page: str, language: str) -> str:
    """Links from a page to itself in the other languages."""
    up = "../" * (page.count("/") + (language != "en"))
    places = {code: up + ("" if code == "en" else f"{code}/") + page for code in words.LANGUAGES if code != language}
    return "".join(f'<a class="language" lang="{code}" hreflang="{code}" href="{place}">{words.LANGUAGES[code]}</a>'
                   for code, place in places.items())


def languages(page: str, text: str, language: str) -> str:
    """A page with links to its other languages, and marked where its text is not in the site's own."""
    for place in ("header", "content"):
        mark = re.search(rf'<div class="theme-toggle-container theme-toggle-{place}">', text)
        if mark:
            text = text[:mark.start()] + switch(page, language) + text[mark.start():]
    document = (ROOT / page).with_suffix(".md")
    ours = page in TRANSLATED or page.startswith("solutions/") or words.translated(document, language) != document
    own = language if ours else "en"
    if own != language:                                        # for screen readers, and for the right fonts
        text = re.sub(r"<article\b", f'<article lang="{own}"', text, count=1)
    return text


def spoken(text: str, t: Callable[[str], str]) -> str:
    """A page whose theme speaks the site's language: what its buttons show outside the text, and what is read out everywhere."""
    parts = re.split(r"(<article\b.*?</article>)", text, flags=re.S)
    for word in words.THEME:
        shown, read = (re.compile(form.format(re.escape(word))) for form in (r">(\s*){}(\s*)<", r'(aria-label|title)="{}(["\s])'))
        parts[::2] = [shown.sub(rf">\1{t(word)}\2<", part) for part in parts[::2]]
        parts = [read.sub(rf'\1="{t(word)}\2', part) for part in parts]
    return "".join(parts)


def finish(app, error):
    if error or app.builder.format != "html":
        return
    names: dict[Path, set[str]] = {}
    out, language = Path(app.outdir), app.config.language
    t = words.translator(language)
    for path in out.rglob("*.html"):
        page = path.relative_to(out).as_posix()
        if not {"_static", "_downloads", *words.LANGUAGES} & set(path.relative_to(out).parts):
            text = pruned(path, mended(path.read_text("utf-8")), names)
            if language != "en":
                text = spoken(text, t)
            path.write_text(languages(page, text, language), "utf-8")


def setup(app):
    app.connect("build-finished", finish)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
