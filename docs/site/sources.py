"""Pages of source code: a [docs] link back is kept only where something stands at its other end.

`viewcode` also writes one for what is not documented, and for what a package shows under a shorter name.
"""

import re
from pathlib import Path

BACK = re.compile(r'<a class="viewcode-back" href="([^"#]+)#([^"]+)">\[docs\]</a>')


def prune(app, error):
    if error or app.builder.format != "html":
        return
    names: dict[Path, set[str]] = {}
    for path in Path(app.outdir, "_modules").rglob("*.html"):
        def keep(found: re.Match, path: Path = path) -> str:
            there = (path.parent / found[1]).resolve()
            if there not in names:
                names[there] = set(re.findall(r'\sid="([^"]+)"', there.read_text("utf-8"))) if there.is_file() else set()
            return found[0] if found[2] in names[there] else ""
        path.write_text(BACK.sub(keep, path.read_text("utf-8")), "utf-8")


def setup(app):
    app.connect("build-finished", prune)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
