"""Checks of chapter 14, LoRA."""

from course.classroom.checks.ch14.injecting import BYTES, INJECT
from course.classroom.checks.ch14.layers import ADAPTER, LORA_LINEAR
from course.classroom.checks.ch14.ranks import LOW_RANK, STACKED

EXERCISES = [LOW_RANK, ADAPTER, LORA_LINEAR, INJECT, BYTES, STACKED]
