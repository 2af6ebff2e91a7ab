"""What a table is: a claim, what would falsify it, how it is measured here, and the rule by which the verdict falls.

The rule is code, written before the run and applied to its rows; it may say `inconclusive`: at the quick scale it always does.
Published figures and the course's stand in different columns, never in one: other data, other networks, other extractors.
"""

import json
import math
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from course import files
from course.demo import commit, device_name

SUPPORTED, CONTRADICTED, INCONCLUSIVE = "supported", "contradicted", "inconclusive"


@dataclass(frozen=True)
class Scale:
    """How much is computed: pictures behind a figure, minutes of training for an arm, seeds of it."""

    name: str
    pictures: int
    minutes: float
    seeds: int


SCALES = {"quick": Scale("quick", 24, 0.01, 1), "cpu": Scale("cpu", 1024, 8.0, 2), "gpu": Scale("gpu", 10_000, 15.0, 3)}


@dataclass
class Work:
    """Where a table is being made, and what it has already: every row is kept as soon as it is there."""

    folder: Path
    scale: Scale
    device: str = "cpu"
    seed: int = 0
    progress: Callable[[float], None] = lambda done: None
    inception: Path | None = None          # files of released networks, to measure with in place of the course's own
    clip: Path | None = None
    lpips: Path | None = None
    pictures: int | None = None            # behind each figure, where a table takes fewer than its scale has
    networks: dict[str, str] = field(default_factory=dict)     # what was measured with: name -> sha256
    computed: int = 0                      # rows that this call has not found in their files

    def with_network(self, network):
        """Note that `network` measures this table's figures; returns it."""
        self.networks[network.name] = network.sha256
        return network

    def once(self, key: str, compute: Callable[[], dict]) -> dict:
        """The row `key`: from its file, or computed and written; so a run that was stopped goes on where it was."""
        path = self.folder / "rows" / f"{key}.json"
        if path.is_file():
            return json.loads(path.read_text("utf-8"))
        row = compute()
        self.computed += 1
        files.write_json(path, row)
        return json.loads(path.read_text("utf-8"))             # the same numbers, whether computed or read

    def share(self, jobs: dict[str, Callable[[], dict]]) -> list[dict]:
        """The rows of all jobs, in their order. A second process that makes the same table in the same folder takes those that
        the first has not begun: with one thread each, two of them keep two cores busy."""
        for wait in (False, True):
            for key, compute in jobs.items():
                with claimed(self.folder / "rows" / f"{key}.lock", wait) as mine:
                    if mine:
                        self.once(key, compute)
        return [self.once(key, compute) for key, compute in jobs.items()]


@contextmanager
def claimed(path: Path, wait: bool):
    """with claimed(path, wait=False) as mine: whether nobody else holds `path`; a process that dies lets go of it."""
    try:
        import fcntl
    except ImportError:                                        # Windows: one process at a time
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


@dataclass(frozen=True)
class Column:
    """A column of the table: how its figures are headed and written."""

    key: str
    head: str
    form: str = ".3g"                      # a format, or "%" for shares

    def say(self, value) -> str:
        if value is None or isinstance(value, float) and math.isnan(value):
            return "–"
        if isinstance(value, str):
            return value
        return f"{100 * value:.1f} %" if self.form == "%" else f"{value:{self.form}}"


@dataclass(frozen=True)
class Part:
    """A second table beside a table's own: other rows, other columns. measure(work, the table's rows) -> its rows."""

    key: str
    title: str
    columns: tuple[Column, ...]
    measure: Callable[[Work, list[dict]], list[dict]]


@dataclass(frozen=True)
class Table:
    """One of the comparison tables.

    measure(work) -> rows of the course's figures.  rule(rows, scale) -> (verdict, why).
    published: (table in errata.published(), columns of it); where from stands in each of its rows.
    parts: further tables, see Part; their rows are kept under "parts" by their keys.
    """

    name: str
    title: str
    claim: str
    falsified_if: str
    columns: tuple[Column, ...]
    measure: Callable[[Work], list[dict]]
    rule: Callable[[list[dict], Scale], tuple[str, str]]
    draw: Callable[[Path, list[dict]], None]
    published: tuple[str, tuple[Column, ...]] | None = None
    notes: tuple[str, ...] = field(default=())
    parts: tuple[Part, ...] = ()


def make(table: Table, work: Work) -> dict:
    """Measure, judge, draw; writes and returns what goes into the report: `table.json` and `figure.png` in the work's folder.

    Where every row is there already, only verdict and figure are made anew: when, where and by which code stays as it was said.
    """
    begun, path = datetime.now(UTC), work.folder / "table.json"
    before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    rows = table.measure(work)
    parts = {part.key: part.measure(work, rows) for part in table.parts}
    verdict, why = ((INCONCLUSIVE, "the quick scale shows that everything runs; it measures nothing")
                    if work.scale.name == "quick" else table.rule(rows, work.scale))
    table.draw(work.folder / "figure.png", rows)
    result = {"table": table.name, "title": table.title, "claim": table.claim, "falsified_if": table.falsified_if,
              "verdict": verdict, "why": why, "rows": rows, "parts": parts, "scale": work.scale.name,
              "n": work.pictures or work.scale.pictures, "seeds": work.scale.seeds, "seed": work.seed, "commit": commit(),
              "device": device_name(work.device), "networks": work.networks, "date": begun.date().isoformat(),
              "seconds": (datetime.now(UTC) - begun).total_seconds()}
    if not work.computed:
        result |= {key: before[key] for key in ("commit", "device", "date", "seconds") if key in before}
    files.write_json(path, result)
    return result
