"""What `course bench speed` and `course bench scaling` print."""

from rich.table import Table

from course.evaluation.machine import Machine

NO_GPU = "SD 1.5 in bf16, compiled, and training at SD size: not measured on a GPU"


def describe(machine: Machine) -> str:
    busy = f", BUSY: load {machine.load:.1f}, times mean little" if machine.load > 0.5 else ""
    return (f"{machine.name}, {machine.threads} threads, torch {machine.torch}, {machine.dtype}: "
            f"{machine.flops / 1e9:,.0f} GFLOP/s, {machine.bandwidth / 1e9:.0f} GB/s{busy}")


def tables(machine: Machine, rows: list[dict], ways: list[dict], starts: list[dict]) -> list[Table]:
    found = [beside(machine, rows)]
    if ways:
        found.append(approximate(ways))
    if starts:
        found.append(start_up(starts))
    return found


def beside(machine: Machine, rows: list[dict]) -> Table:
    table = _table(describe(machine), "", "ours, ms", "diffusers, ms", "ratio", "lowest ... highest", "gate, aim", "floor, ms",
                   "of the floor", "difference", "")
    for row in rows:
        gate = "–" if row["gate"] is None else f"{row['gate']:.2f}" + (f", {row['aim']:.2f}" if row["aim"] else "")
        table.add_row(row["name"], f"{row['ours_ms']:.1f}", f"{row['theirs_ms']:.1f} ({row['their_layout']})",
                      f"{row['ratio']:.2f}", f"{row['ratio_low']:.2f} ... {row['ratio_high']:.2f}", gate,
                      f"{row['floor_ms']:.1f}", f"{100 * row['of_floor']:.0f} %",
                      f"{row['error']:.0e}" + ("" if row["equal"] else " DIFFERS"),
                      row["note"] + (f" {100 * row['mfu']:.0f} % of the data sheet's peak" if row.get("mfu") else ""))
    if not machine.device.startswith("cuda"):
        table.caption = NO_GPU
    return table


def approximate(ways: list[dict]) -> Table:
    table = _table(f"Not the same picture any more: {ways[0]['prompts']} unseen prompts, read by the oracle", "", "ms a picture",
                   "x exact", "x diffusers, exact", "all right", "lost, points")
    for row in ways:
        table.add_row(row["name"], f"{row['ms']:.0f}", f"{row['times_exact']:.1f}", f"{row['times_diffusers']:.1f}",
                      f"{100 * row['right']:.1f} %", f"{100 * row['lost']:+.1f}")
    return table


def start_up(starts: list[dict]) -> Table:
    table = _table("From the command to its end", "", "seconds", "allowed", "diffusers")
    for row in starts:
        table.add_row(row["name"], f"{row['seconds']:.2f}", "–" if row["allowed"] is None else f"{row['allowed']:g}",
                      "–" if row["theirs_seconds"] is None else f"{row['theirs_seconds']:.2f}")
    return table


def scaling(machine: Machine, rows: list[dict]) -> Table:
    table = _table(describe(machine), "", "sizes", "ms", "exponent, measured", "... counted", "last two sizes, measured",
                   "... counted", "in the limit")
    for row in rows:
        table.add_row(row["axis"], ", ".join(map(str, row["sizes"])), ", ".join(f"{t:.1f}" for t in row["ms"]),
                      *(f"{row[key]:.2f}" for key in ("measured", "counted", "measured_upper", "counted_upper")), row["limit"])
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table
