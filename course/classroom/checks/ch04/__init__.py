"""Checks of chapter 04, vector quantisation."""

from course.classroom.checks.ch04.codes import NEAREST, QUANTIZE
from course.classroom.checks.ch04.learning import CODEBOOK_LOSS, EMA_UPDATE
from course.classroom.checks.ch04.module import VECTOR_QUANTIZER
from course.classroom.checks.ch04.using import RESTART, USAGE

EXERCISES = [NEAREST, QUANTIZE, CODEBOOK_LOSS, EMA_UPDATE, USAGE, RESTART, VECTOR_QUANTIZER]
