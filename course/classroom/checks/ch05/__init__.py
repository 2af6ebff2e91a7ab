"""Checks of chapter 05, the forward process."""

from course.classroom.checks.ch05.conversions import CONVERT
from course.classroom.checks.ch05.noising import ADD_NOISE, DIFFUSE
from course.classroom.checks.ch05.schedules import LOG_SNR, MAKE_SCHEDULE, TIMESTEPS

EXERCISES = [MAKE_SCHEDULE, DIFFUSE, ADD_NOISE, LOG_SNR, CONVERT, TIMESTEPS]
