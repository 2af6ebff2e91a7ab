"""tables.md: the comparison tables, where some have been made; else how to make them."""

import shutil
from pathlib import Path

SCALES = ("gpu", "cpu", "quick")
HOW = """```bash
course tables all --scale cpu        # hours on a processor; goes on where it was stopped
course tables report --scale cpu     # the page anew, of what is there
make site                            # this page with them
```
"""


def folder(root: Path) -> tuple[Path, str] | None:
    """(folder, scale) of the tables at the largest scale that has any."""
    for scale in SCALES:
        for place in (root / "docs" / "tables" / scale, root / "runs" / "tables" / scale):
            if any(place.glob("*/table.json")):
                return place, scale
    return None


def page(root: Path, out: Path) -> str:
    """The page; figures of the tables are copied to `out`/tables."""
    from course.evaluation import tables
    from course.evaluation.tables import page as report
    lines = ["# The comparison tables", "",
             "The tables of the papers and of the article, each with a claim, with what would falsify it, written down before",
             "the run, and with the rule of its verdict, which is code. Published figures stand in tables of their own: other",
             "data, other networks.", ""]
    found = folder(root)
    if found is None:
        lines += ["None has been made in this checkout yet. What they ask:", ""]
        lines += [f"- **{t.name}. {t.title}** — {t.claim}." for t in tables.TABLES.values()]
        return "\n".join([*lines, "", "## How to make them", "", HOW])
    place, scale = found
    made = report.collect(place, tables.TABLES)
    lines += [f"These were made at the scale `{scale}`, {len(made)} of {len(tables.TABLES)}."
              + (" It takes seconds, shows that the computation works, and decides nothing." if scale == "quick" else ""), ""]
    for table, result in made:
        lines += [f"## {table.name}. {table.title}", "", f"**{table.claim}.** Falsified if {table.falsified_if}.", "",
                  f"**{result['verdict'].capitalize()}**: {result['why']}", "",
                  report.grid(report.heads(table, result), report.cells(table.columns, result["rows"]))]
        figure = place / table.name / "figure.png"
        if figure.is_file():
            (out / "tables").mkdir(exist_ok=True)
            shutil.copyfile(figure, out / "tables" / f"{table.name}.png")
            lines += [f"![Table {table.name} as a figure: {table.title}](tables/{table.name}.png)", ""]
        for part in report.beside(table, result):
            lines += [f"### {part['title']}", "", report.grid(part["columns"], part["rows"])]
        lines += [*(f"- {note}" for note in table.notes), "",
                  f"{result['n']:,} pictures, {result['seeds']} seed{'s' * (result['seeds'] > 1)}, {result['device']}, "
                  f"{report.took(result['seconds'])}, {result['date']}, commit {result['commit']}.", ""]
    return "\n".join([*lines, "## Make them anew", "", HOW])
