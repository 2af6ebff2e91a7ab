"""Checks of chapter 13, ControlNet."""

from course.classroom.checks.ch13.adding import ADD, FORWARD
from course.classroom.checks.ch13.edges import F_SCORE
from course.classroom.checks.ch13.networks import COPY, HINT_NET
from course.classroom.checks.ch13.stepping import STEP
from course.classroom.checks.ch13.zeros import GRADIENTS

EXERCISES = [GRADIENTS, HINT_NET, COPY, FORWARD, ADD, STEP, F_SCORE]
