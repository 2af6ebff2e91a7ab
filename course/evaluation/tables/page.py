"""The report: every table, its figure, claim and verdict, and the article's mistakes, in one page; and each table for a paper."""

from pathlib import Path

from course import files
from course.evaluation import errata, report
from course.evaluation.tables.table import Column, Table

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>What the papers say, and what comes out here</title>
{{ style|safe }}
<style>
 .verdict { font-weight: 650; white-space: nowrap; }
 .supported::before { content: "✓ "; } .contradicted::before { content: "✗ "; }
 .inconclusive::before { content: "? "; } .supported { color: var(--latent); } .contradicted { color: var(--pixel); }
 .inconclusive { opacity: .75; } td.words { text-align: left; min-width: 12rem; } td:first-child { white-space: nowrap; }
 figure { margin: 1rem 0; } nav table { min-width: 0; width: 100%; }
 @media print { body { max-width: none; padding: 0; font-size: 11px; } section { break-inside: avoid; } a { color: inherit; } }
</style></head><body>
<h1>What the papers say, and what comes out here</h1>
<p>{{ summary }} Each verdict follows from a rule that was written before the run. Published figures and those of this course
stand in different tables: other data, other networks, and FD-course is no FID.</p>
<nav class="scroll"><table><thead><tr><th>table</th><th>claim</th><th>verdict</th></tr></thead><tbody>
{% for t in tables %}<tr><td><a href="#{{ t.name }}">{{ t.name }}</a></td><td class="words">{{ t.claim }}</td>
<td class="verdict {{ t.r.verdict }}">{{ t.r.verdict }}</td></tr>
{% endfor %}</tbody></table></nav>
{% for t in tables %}<section id="{{ t.name }}"><h2>{{ t.name }}. {{ t.title }}</h2>
<p>{{ t.claim }}. <span class="small">Falsified if {{ t.falsified_if }}.</span></p>
<p><span class="verdict {{ t.r.verdict }}">{{ t.r.verdict }}</span>: {{ t.r.why }}.</p>
<figure><img src="{{ t.figure }}" alt="{{ t.title }}"></figure>
<div class="scroll"><table><thead><tr>{% for head in t.heads %}<th>{{ head }}</th>{% endfor %}</tr></thead><tbody>
{% for row in t.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% if t.published %}<p class="small">Published:</p><div class="scroll"><table><thead><tr>
{% for c in t.published.columns %}<th>{{ c }}</th>{% endfor %}<th>source</th></tr></thead><tbody>
{% for row in t.published.rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% endif %}
{% for note in t.notes %}<p class="small">{{ note }}</p>{% endfor %}
<p class="small">{{ t.r.scale }} scale, n = {{ t.r.n }}, seed {{ t.r.seed }}, {{ t.r.device }}, commit {{ t.r.commit }},
{{ t.r.date }}, {{ "%.0f"|format(t.r.seconds) }} s
{%- for name, sha in t.r.networks.items() %}, {{ name }}: network {{ sha[:12] }}{% endfor %}</p></section>
{% endfor %}
<section><h2>Where the article errs</h2><div class="scroll"><table>
<thead><tr><th>section</th><th>the article says</th><th>what is so</th><th>source</th><th>seen here</th></tr></thead><tbody>
{% for e in errata %}<tr><td>{{ e.section }}</td><td class="words">{{ e.says }}</td><td class="words">{{ e.is_ }}</td>
<td class="words">{{ e.source }}</td><td>{{ e.seen }}</td></tr>
{% endfor %}</tbody></table></div><p class="small">✓: a check in the code computes it.</p></section>
</body></html>
"""


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
    """{"columns", "rows"} of the published figures, the source of each row at its end."""
    if table.published is None:
        return None
    name, columns = table.published
    rows = errata.published()["tables"][name]["rows"]
    return {"columns": [c.head for c in columns],
            "rows": [[*line, row["source"]] for line, row in zip(cells(columns, rows), rows, strict=True)]}


def write(folder: Path, made: list[tuple[Table, dict]]) -> Path:
    """`report.html` in `folder`, of tables whose own folders lie in it; returns its path."""
    from jinja2 import Environment
    verdicts = [result["verdict"] for _, result in made]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in ("supported", "contradicted", "inconclusive") if v in verdicts)
    told = [{"name": t.name, "title": t.title, "claim": t.claim, "falsified_if": t.falsified_if, "heads": heads(t, result),
             "r": result, "rows": cells(t.columns, result["rows"]), "published": published(t), "notes": t.notes,
             "figure": report.inline({"f": folder / t.name / "figure.png"})["f"]} for t, result in made]
    wrong = [{"section": e.section, "says": e.says, "is_": e.is_, "source": e.source, "seen": "✓" if e.holds() else ""}
             for e in errata.entries()]
    html = Environment(autoescape=True).from_string(PAGE).render(
        style=report.STYLE, tables=told, errata=wrong, summary=f"Of {len(made)} claims: {counts}.")
    files.write_bytes(folder / "report.html", html.encode())
    return folder / "report.html"


def markdown(table: Table, result: dict) -> str:
    first = heads(table, result)
    lines = [first, ["---"] * len(first), *cells(table.columns, result["rows"])]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{result['verdict']}: {result['why']}\n"


def latex(table: Table, result: dict) -> str:
    """A `tabular` with booktabs' rules."""
    def safe(text: str) -> str:
        return "".join("\\" + sign if sign in "&%$#_{}" else sign for sign in text)
    rows = cells(table.columns, result["rows"])
    body = "\n".join("  " + " & ".join(map(safe, line)) + r" \\" for line in rows)
    first = " & ".join(map(safe, heads(table, result)))
    return (f"\\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}\n  \\toprule\n  {first} \\\\\n  \\midrule\n{body}\n"
            f"  \\bottomrule\n\\end{{tabular}}\n")
