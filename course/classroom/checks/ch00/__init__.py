"""Checks of chapter 00, the tour."""

from course.classroom.checks.ch00.asking import GUIDE, SHARE
from course.classroom.checks.ch00.latents import SLERP, START
from course.classroom.checks.ch00.pictures import CONVERT, GRID

EXERCISES = [CONVERT, GRID, START, GUIDE, SHARE, SLERP]
