"""Checks of chapter 02, the variational autoencoder."""

from course.classroom.checks.ch02.downsample import DOWNSAMPLE
from course.classroom.checks.ch02.encoder import ENCODER
from course.classroom.checks.ch02.gaussian import DIAGONAL_GAUSSIAN
from course.classroom.checks.ch02.gradients import GRADIENTS
from course.classroom.checks.ch02.latents import ACTIVE, SCALING
from course.classroom.checks.ch02.loss import VAE_LOSS
from course.classroom.checks.ch02.rate import MONTE_CARLO

EXERCISES = [DOWNSAMPLE, ENCODER, GRADIENTS, MONTE_CARLO, DIAGONAL_GAUSSIAN, VAE_LOSS, ACTIVE, SCALING]
