"""Checks of chapter 09, attention and text."""

from course.classroom.checks.ch09.blocks import BLOCK, CROSS_ATTENTION, FEED_FORWARD
from course.classroom.checks.ch09.sentences import ENCODE_TEXT, POOLED
from course.classroom.checks.ch09.tokens import ENCODE_WORD, LEARN_MERGES
from course.classroom.checks.ch09.weighing import WEIGHTS

EXERCISES = [WEIGHTS, CROSS_ATTENTION, FEED_FORWARD, BLOCK, LEARN_MERGES, ENCODE_WORD, ENCODE_TEXT, POOLED]
