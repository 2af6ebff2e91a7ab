"""Checks of chapter 08, latent diffusion."""

from course.classroom.checks.ch08.caching import DRAW, ENCODE, SCALE
from course.classroom.checks.ch08.sampling import SAMPLE
from course.classroom.checks.ch08.stepping import DROP, STEP

EXERCISES = [ENCODE, SCALE, DRAW, DROP, STEP, SAMPLE]
