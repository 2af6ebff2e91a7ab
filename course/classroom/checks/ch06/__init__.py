"""Checks of chapter 06, the network and its training."""

from course.classroom.checks.ch06.average import UPDATE_AVERAGE
from course.classroom.checks.ch06.blocks import RES_BLOCK
from course.classroom.checks.ch06.embedding import EMBEDDING
from course.classroom.checks.ch06.loss import SIMPLE_LOSS
from course.classroom.checks.ch06.norms import NORMALISE
from course.classroom.checks.ch06.skips import UNET_FORWARD, UP_INPUTS

EXERCISES = [EMBEDDING, NORMALISE, RES_BLOCK, UP_INPUTS, UNET_FORWARD, SIMPLE_LOSS, UPDATE_AVERAGE]
