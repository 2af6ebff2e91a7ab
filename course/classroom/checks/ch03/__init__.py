"""Checks of chapter 03, perceptual and adversarial losses."""

from course.classroom.checks.ch03.critic import ADAPTIVE, HINGE, PATCH, RECEPTIVE
from course.classroom.checks.ch03.likeness import FINE, PERCEPTUAL, RECONSTRUCTION

EXERCISES = [FINE, PERCEPTUAL, RECONSTRUCTION, RECEPTIVE, PATCH, HINGE, ADAPTIVE]
