"""The course's own answers of chapter 12 equal the library's."""

import pytest
import torch

from course.classroom.checks.ch12 import answers
from course.evaluation import errata, metrics


def clouds(n=60, m=40, d=6):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator), 2 * torch.randn(m, d, generator=generator) + 0.5


@pytest.mark.parametrize("sizes", [(60, 40, 6), (8, 9, 30)])
def test_distances_equal_the_library(sizes):
    a, b = clouds(*sizes)
    assert answers.frechet_distance(a, b) == pytest.approx(metrics.frechet_distance(a, b), rel=1e-6, abs=1e-6)
    assert answers.kernel_distance(a, b) == pytest.approx(metrics.kernel_distance(a, b))
    assert answers.precision_recall(a, b, 3) == pytest.approx(metrics.precision_recall(a, b, 3))


def test_the_limit_equals_the_library():
    a, b = clouds(200, 160)
    limit, slope, points = metrics.without_bias(a, b)
    assert answers.extrapolated(*zip(*points, strict=True)) == pytest.approx((limit, slope))


def test_a_caption_is_found_among_its_near_misses():
    pictures = torch.eye(4)
    captions = torch.stack([pictures, pictures.flip(0)], dim=1)                         # (4,2,4)
    assert answers.clip_score(pictures, captions) == (1.0, 1.0)
    assert answers.clip_score(pictures, captions.flip(1)) == (0.0, 0.0)


def test_the_article_s_rows_are_mixed_as_the_errata_say():
    rows = errata.published()["tables"]["class_conditional"]["rows"]
    whole, parts = answers.rows_with(rows, {"FID": 4.59, "IS": 186.7, "parameters_millions": 554})
    assert whole == [] and parts == {"FID": ["ADM-G"], "IS": ["ADM-G"], "parameters_millions": ["ADM"]}


def test_verdicts():
    low, high, wide = (1.0, 2.0), (3.0, 4.0), (0.0, 9.0)
    assert [answers.verdict(p) for p in ([(low, high)], [(high, low)], [(low, wide)], [])] == [
        "supported", "contradicted", "inconclusive", "inconclusive"]
