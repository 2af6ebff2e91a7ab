"""What can go wrong, by name. Every message says which value was bad and what was expected.

The command line turns a `CourseError` into one line and exit code 2; anything else is a bug and keeps its traceback.
"""


class CourseError(Exception):
    """Base of every error that a user can mend."""


class UsageError(CourseError, ValueError):
    """An argument is out of its range or names something unknown."""


class ShapeError(CourseError, ValueError):
    """A tensor's shape or dtype does not fit."""


class CheckpointError(CourseError):
    """A saved file is missing, damaged, or belongs to another model."""


class TrainingError(CourseError):
    """Training cannot go on: the loss is not a number, memory ran out, or the run folder cannot be written."""


class Terminated(KeyboardInterrupt):
    """The machine asked a run to go (SIGTERM): all is saved, and that is no failure."""
