"""Say how far along a long run is: a live bar in a terminal, a plain line now and then elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

PLAIN_SECONDS = 30.0


class Progress:
    """with Progress("autoencoder") as progress: progress.update(0.25, loss=0.1, images_per_second=200)"""

    def __init__(self, title: str, quiet: bool = False, console: Console | None = None):
        self.title, self.quiet = title, quiet
        self.console = console or Console()
        self.live = None
        if not quiet and self.console.is_terminal:
            self.live = Bar(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
                            TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
                            console=self.console)

    def __enter__(self):
        self.begun = self.printed = time.perf_counter()
        self.first = None
        if self.live:
            self.live.start()
            self.task = self.live.add_task(self.title, total=1.0, note="")
        return self

    def update(self, done: float, **figures: float) -> None:
        """`done` of the whole, 0 ... 1; figures are shown beside it."""
        if self.quiet:
            return
        note = "  ".join(f"{name.replace('_per_second', '/s')} {value:.4g}" for name, value in figures.items())
        now = time.perf_counter()
        if self.live:
            self.live.update(self.task, completed=done, note=note)
            return
        if self.first is None:
            self.first = (now, done)
        if now - self.printed >= PLAIN_SECONDS:
            self.printed = now
            start, done_at_start = self.first
            left = (now - start) / max(done - done_at_start, 1e-9) * (1 - done)
            self.console.print(f"{self.title}: {done:4.0%}  left {left / 60:.1f} min  {note}", highlight=False)

    def __exit__(self, *_):
        if self.live:
            self.live.stop()
