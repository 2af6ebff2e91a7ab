"""Checks of chapter 11, Stable Diffusion whole."""

from course.classroom.checks.ch11.assembling import GENERATE, GUIDED
from course.classroom.checks.ch11.counting import BLOCKS, UNET
from course.classroom.checks.ch11.editing import KNOWN, START
from course.classroom.checks.ch11.files import ENTRY, SURVEY

EXERCISES = [BLOCKS, UNET, GUIDED, GENERATE, START, KNOWN, ENTRY, SURVEY]
