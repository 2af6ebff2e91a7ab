"""Checks of chapter 01, why latent space."""

from course.classroom.checks.ch01.codes import PATCH_PCA, PSNR
from course.classroom.checks.ch01.costs import ATTENTION, COMPRESSION, CONV
from course.classroom.checks.ch01.spectra import LOW_PASS, POWER_SPECTRUM

EXERCISES = [CONV, ATTENTION, COMPRESSION, POWER_SPECTRUM, LOW_PASS, PSNR, PATCH_PCA]
