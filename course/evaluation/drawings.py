"""The drawings that there are of a model, by name: `course architecture MODEL --what NAME`."""

from course.errors import UsageError
from course.evaluation import architecture, blueprint, flow

DRAWINGS = {"unet": blueprint.unet, "vae": blueprint.vae, "pipeline": flow.pipeline}


def check(what: str) -> None:
    """Raises UsageError for what cannot be drawn."""
    if what not in DRAWINGS:
        raise UsageError(f"unknown drawing {what!r}, expected one of {', '.join(DRAWINGS)}")


def draw(record: "architecture.Record", what: str) -> str:
    """The SVG of a model. Raises UsageError for an unknown drawing, or one that this model has not."""
    check(what)
    return DRAWINGS[what](record)
