"""Checks of chapter 16, the capstone."""

from course.classroom.checks.ch16.blocks import BLOCK, PATCHIFY
from course.classroom.checks.ch16.proof import CULPRITS, DISTANCE, FINGERPRINT, SWAPPED

EXERCISES = [SWAPPED, DISTANCE, CULPRITS, FINGERPRINT, PATCHIFY, BLOCK]
