"""Checks of chapter 12, evaluation."""

from course.classroom.checks.ch12.clouds import EXTRAPOLATED, FRECHET, KERNEL, PRECISION
from course.classroom.checks.ch12.judging import CLIP, ROWS, VERDICT

EXERCISES = [FRECHET, EXTRAPOLATED, KERNEL, PRECISION, CLIP, VERDICT, ROWS]
