"""Checks of chapter 07, the reverse process."""

from course.classroom.checks.ch07.exact import EXACT
from course.classroom.checks.ch07.loops import DDIM, INVERT
from course.classroom.checks.ch07.solvers import DPMPP, HEUN
from course.classroom.checks.ch07.steps import DDIM_STEP, POSTERIOR

EXERCISES = [EXACT, POSTERIOR, DDIM_STEP, DDIM, INVERT, HEUN, DPMPP]
