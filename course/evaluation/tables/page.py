"""The report: every table, its figure, claim and verdict, and the article's mistakes, in one page; and each table for a paper."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from course import files
from course.errors import UsageError
from course.evaluation import errata, report
from course.evaluation.tables.table import CONTRADICTED, INCONCLUSIVE, SUPPORTED, Column, Table

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>What the papers say, and what comes out here</title>
{{ style|safe }}
<style>
 .verdict { font-weight: 650; white-space: nowrap; } .small { font-size: .86rem; opacity: .85; }
 .supported { color: var(--latent); } .contradicted { color: var(--pixel); } .inconclusive { opacity: .8; }
 .supported::before { content: "✓ "; } .contradicted::before { content: "✗ "; } .inconclusive::before { content: "? "; }
 td { white-space: nowrap; } td.words { text-align: left; min-width: 12rem; white-space: normal; }
 figure { margin: 1rem 0; } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
 nav ul { list-style: none; padding: 0; margin: 0; } nav li { margin: 0 0 .55rem; padding-left: 2.1rem; text-indent: -2.1rem; }
 nav li b { display: inline-block; width: 1.9rem; text-indent: 0; } nav .why { display: block; text-indent: 0; }
 .part > table { font-size: .86rem; } .part { margin: .4rem 0 1rem; } tbody tr:nth-child(even) { background: var(--soft); }
 @page { size: A4; margin: 14mm; }
 @media print { :root { color-scheme: light; --ink:#111; --page:#fff; --soft:#f4f4f6; --line:#d0d0d6; --latent:#0067a3;
     --pixel:#b84e00; }
   html { font-size: 11px; } body { max-width: none; padding: 0; font-size: 1rem; } section { break-before: page; }
   figure, tr, nav li { break-inside: avoid; } a { color: inherit; text-decoration: none; } .scroll { overflow: visible; }
   .part > table { font-size: .74rem; min-width: 0; width: 100%; } th, td { padding: .2rem .3rem; } }
</style></head><body>
<h1>What the papers say, and what comes out here</h1>
<p>{{ summary }} Each verdict follows from a rule that was written down before the run. Published figures and those of this course
stand in different tables: other data, other networks, and FD-course is no FID.</p>
<nav>{% for name, title in groups %}{% set own = tables|selectattr("r.verdict", "equalto", name)|list %}{% if own %}
<h3 class="{{ name }}">{{ title }}</h3><ul>{% for t in own %}
<li><b><a href="#{{ t.name }}">{{ t.name }}</a></b>{{ t.claim }}.
<span class="small why">{{ t.r.why }}.</span></li>{% endfor %}</ul>{% endif %}{% endfor %}
{% if missing %}<p class="small">Not run at this scale: {{ missing }}.</p>{% endif %}
<p class="small"><a href="#errata">Where the article errs</a>: {{ errata|length }} places; {{ shown }} of them are shown by a
check that has just been run.</p></nav>
{% for t in tables %}<section id="{{ t.name }}"><h2>{{ t.name }}. {{ t.title }}</h2>
<p>{{ t.claim }}. <span class="small">Falsified if {{ t.falsified_if }}.</span></p>
<p><span class="verdict {{ t.r.verdict }}">{{ t.r.verdict }}</span>: {{ t.r.why }}.</p>
<figure><img src="{{ t.figure }}" alt="{{ t.title }}"></figure>
<div class="scroll part"><table><thead><tr>{% for head in t.heads %}<th>{{ head }}</th>{% endfor %}</tr></thead><tbody>
{% for row in t.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% for part in t.parts %}<h3>{{ part.title }}</h3><div class="scroll part"><table><thead><tr>
{% for c in part.columns %}<th>{{ c }}</th>{% endfor %}</tr></thead><tbody>
{% for row in part.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endfor %}
{% if t.published %}<h3>Published: {{ t.published.title }}</h3><div class="scroll part"><table><thead><tr>
{% for c in t.published.columns %}<th>{{ c }}</th>{% endfor %}<th>source</th></tr></thead><tbody>
{% for row in t.published.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% for note in t.notes %}<p class="small">{{ note }}</p>{% endfor %}
<p class="small">{{ t.r.scale }} scale, n = {{ t.r.n }}, seed {{ t.r.seed }}, {{ t.r.device }}, commit {{ t.r.commit }},
{{ t.r.date }}, {{ t.took }}
{%- for name, sha in t.r.networks.items() %}, {{ name }}: network {{ sha[:12] }}{% endfor %}</p></section>
{% endfor %}
<section id="errata"><h2>Where the article errs</h2><div class="scroll part"><table>
<thead><tr><th>section</th><th>the article says</th><th>what is so</th><th>source</th><th>seen here</th></tr></thead><tbody>
{% for e in errata %}<tr><td>{{ e.section }}</td><td class="words">{{ e.says }}</td><td class="words">{{ e.is_ }}</td>
<td class="words">{{ e.source }}</td>
<td>{{ e.seen }}{% if e.check %} <code>{{ e.check }}</code>{% endif %}</td></tr>
{% endfor %}</tbody></table></div><p class="small">✓: the check of that name in <code>course/evaluation/errata.py</code>
has been run and computes it; ✗: it does not. The others are read off the sources.</p></section>
</body></html>
"""
GROUPS = ((SUPPORTED, "Holds here"), (CONTRADICTED, "Does not hold here"), (INCONCLUSIVE, "Not decided"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
RELEASED = {"FID": {"FD-course": "FID", "KID-course": "KID"}, "CLIP": {"CLIP-course": "CLIP score"},
            "LPIPS": {"PSIM-course": "LPIPS"}}


def heads(table: Table, result: dict) -> list[str]:
    """How the columns are called: a figure of a released network has not the course's name."""
    said = [c.head for c in table.columns]
    for network in result["networks"]:
        for own, theirs in RELEASED.get(network, {}).items():
            said = [head.replace(own, theirs) for head in said]
    return said


def cells(columns: tuple[Column, ...], rows: list[dict]) -> list[list[str]]:
    return [[c.say(row.get(c.key)) for c in columns] for row in rows]


def published(table: Table) -> dict | None:
    """{"columns", "rows"} of the published figures, the source of each row at its end; rows with a figure in these columns."""
    if table.published is None:
        return None
    name, columns = table.published
    found = errata.published()["tables"][name]
    rows = [r for r in found["rows"] if any(isinstance(r.get(c.key), int | float) for c in columns)]
    return {"title": found["title"], "columns": [c.head for c in columns],
            "rows": [[*line, row["source"]] for line, row in zip(cells(columns, rows), rows, strict=True)]}


def parts(table: Table, result: dict) -> list[dict]:
    """{"title", "columns", "rows"} of the further tables that this result has; those made before there were any have none."""
    made = result.get("parts", {})
    return [{"title": part.title, "columns": [c.head for c in part.columns], "rows": cells(part.columns, made[part.key])}
            for part in table.parts if part.key in made]


def collect(folder: Path, known: dict[str, Table]) -> list[tuple[Table, dict]]:
    """The tables that have been made in `folder`, in this call or an earlier one."""
    paths = {name: folder / name / "table.json" for name in known}
    return [(known[name], json.loads(path.read_text("utf-8"))) for name, path in paths.items() if path.is_file()]


def write(folder: Path, made: list[tuple[Table, dict]], missing: list[str]) -> Path:
    """`report.html` in `folder`, of tables whose own folders lie in it; returns its path."""
    from jinja2 import Environment
    verdicts = [result["verdict"] for _, result in made]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v, _ in GROUPS if v in verdicts)
    told = [{"name": t.name, "title": t.title, "claim": t.claim, "falsified_if": t.falsified_if, "heads": heads(t, result),
             "r": result, "rows": cells(t.columns, result["rows"]), "published": published(t),
             "parts": parts(t, result), "notes": t.notes,
             "took": took(result["seconds"]), "figure": report.inline({"f": folder / t.name / "figure.png"})["f"]}
            for t, result in made]
    wrong = [{"section": e.section, "says": e.says, "is_": e.is_, "source": e.source, "check": e.check,
              "seen": {True: "✓", False: "✗", None: ""}[e.holds()]} for e in errata.entries()]
    html = Environment(autoescape=True).from_string(PAGE).render(
        style=report.STYLE, tables=told, errata=wrong, groups=GROUPS, missing=", ".join(missing),
        shown=sum(e["seen"] == "✓" for e in wrong), summary=f"Of {len(made)} claims: {counts}.")
    files.write_bytes(folder / "report.html", html.encode())
    return folder / "report.html"


def took(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"


def pdf(page: Path) -> Path:
    """The page printed beside itself, by a headless Chromium. Raises UsageError where there is none."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise UsageError(f"a PDF is printed by Chromium, and none of {', '.join(BROWSERS)} is on the path; "
                         f"`apt install chromium`, or print {page} from any browser")
    path = page.with_suffix(".pdf").resolve()
    # root has no sandbox to open; what is printed is the page that we have just written
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    done = subprocess.run([browser, "--headless", "--disable-gpu", *sandbox, "--no-pdf-header-footer", f"--print-to-pdf={path}",
                           page.resolve().as_uri()], capture_output=True, text=True, timeout=120)
    if done.returncode or not path.is_file():
        raise UsageError(f"{browser} could not print {page}: {done.stderr.strip()[-300:]}")
    return path


def grid(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = ([cell.replace("|", r"\|") for cell in line] for line in (columns, ["---"] * len(columns), *rows))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def markdown(table: Table, result: dict) -> str:
    said = [grid(heads(table, result), cells(table.columns, result["rows"])), f"{result['verdict']}: {result['why']}\n"]
    for part in beside(table, result):
        said += [f"{part['title']}:\n", grid(part["columns"], part["rows"])]
    return "\n".join(said)


def beside(table: Table, result: dict) -> list[dict]:
    """What stands under the table itself, as tables of their own: its parts, then what was published, each with its source."""
    theirs = published(table)
    return parts(table, result) + ([{"title": f"Published: {theirs['title']}", "columns": [*theirs["columns"], "source"],
                                     "rows": theirs["rows"]}] if theirs else [])


def latex(table: Table, result: dict) -> str:
    """A `tabular` with booktabs' rules, and one more for each part and for the published figures, with its title before it."""
    def safe(text: str) -> str:
        return "".join("\\" + sign if sign in "&%$#_{}" else sign for sign in text)

    def tabular(columns: list[str], rows: list[list[str]]) -> str:
        first, *body = (" & ".join(map(safe, line)) + r" \\" for line in (columns, *rows))
        lines = [rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}", r"  \toprule", f"  {first}", r"  \midrule",
                 *(f"  {line}" for line in body), r"  \bottomrule", r"\end{tabular}"]
        return "\n".join(lines) + "\n"
    said = [tabular(heads(table, result), cells(table.columns, result["rows"]))]
    said += [f"% {part['title']}\n" + tabular(part["columns"], part["rows"]) for part in beside(table, result)]
    return "\n".join(said)
