"""Checks of chapter 10, guidance and prompts."""

from course.classroom.checks.ch10.guiding import DROP, GUIDED, LIMITED, RESCALED
from course.classroom.checks.ch10.measuring import PAIRED, SHARPNESS

EXERCISES = [DROP, GUIDED, LIMITED, RESCALED, SHARPNESS, PAIRED]
