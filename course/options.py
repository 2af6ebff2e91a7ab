"""Options that several commands have, and how some are read."""

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON, and nothing else.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, mps.")]


def weighted(text: str) -> tuple[str, float]:
    """"file:0.8" -> ("file", 0.8); without a number behind the colon all of it is the file, and the weight 1."""
    path, colon, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0
