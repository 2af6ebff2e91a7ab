"""Checks of chapter 15, SDXL."""

from course.classroom.checks.ch15.bucketing import ASSIGN, BATCHES, SIDES
from course.classroom.checks.ch15.refining import HAND_OVER
from course.classroom.checks.ch15.telling import CROP, EMBED, JOIN, WAVES

EXERCISES = [WAVES, JOIN, EMBED, CROP, HAND_OVER, SIDES, ASSIGN, BATCHES]
