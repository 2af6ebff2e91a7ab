"""Metrics against closed forms, and against torchmetrics."""

import math

import pytest
import torch

from course.errors import ShapeError, UsageError
from course.evaluation import metrics


def cloud(n, d, seed=0, shift=0.0, scale=1.0):
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exactly(mean, covariance, n=64, seed=0):
    """n points whose sample mean and covariance are exactly these."""
    d = len(mean)
    x = cloud(n, d, seed)
    x = x - x.mean(0)
    L = torch.linalg.cholesky(torch.cov(x.T))
    return x @ torch.linalg.inv(L).T @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_known_gaussians():
    zero, eye = torch.zeros(3).double(), torch.eye(3).double()
    a = exactly(zero, eye)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert metrics.frechet_distance(a, exactly(torch.tensor([1.0, 2.0, 2.0]).double(), eye, seed=1)) == pytest.approx(9)
    # commuting covariances: the sum of (s_a - s_b)^2 over the axes
    diagonal = torch.diag(torch.tensor([4.0, 9.0, 0.25]).double())
    assert metrics.frechet_distance(a, exactly(zero, diagonal, seed=2)) == pytest.approx(1 + 4 + 0.25)
    turn = torch.linalg.qr(cloud(3, 3, 5))[0]
    turned = turn @ diagonal @ turn.T
    assert metrics.frechet_distance(exactly(zero, diagonal), exactly(zero, turned, seed=3)) == pytest.approx(
        2 * diagonal.trace() - 2 * torch.linalg.eigvals(diagonal @ turned).real.sqrt().sum())


def test_frechet_distance_against_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    real, fake = cloud(300, 16, 0), cloud(200, 16, 1, 0.3, 1.4)

    class Features(torch.nn.Module):
        num_features = 16

        def forward(self, images):
            return images.flatten(1)[:, :16]

    theirs = fid.FrechetInceptionDistance(feature=Features(), input_img_size=(1, 4, 4))
    theirs.set_dtype(torch.float64)
    theirs.update(real.view(-1, 1, 4, 4), real=True)
    theirs.update(fake.view(-1, 1, 4, 4), real=False)
    assert metrics.frechet_distance(real, fake) == pytest.approx(theirs.compute().item(), rel=1e-4)


def test_frechet_distance_falls_with_n_and_the_line_finds_its_end():
    real, fake = cloud(20_000, 32, 0), cloud(2_000, 32, 1)
    small, large = metrics.frechet_distance(real, fake[:250]), metrics.frechet_distance(real, fake)
    assert small > 4 * large > 0
    end, slope, points = metrics.without_bias(real, fake)
    assert abs(end) < 0.2 * large and slope > 0 and points[0][0] == 1000 and points[-1][0] == 2000
    twice = fake[torch.randint(2000, (2000,), generator=torch.Generator().manual_seed(2))]
    assert metrics.frechet_distance(real, twice) > 1.5 * large           # a bootstrap would have said this


def test_kernel_distance_is_unbiased():
    equal = [metrics.kernel_distance(cloud(40, 8, s), cloud(40, 8, 100 + s)) for s in range(60)]
    mean, error = sum(equal) / 60, torch.tensor(equal).std().item() / 60**0.5
    assert abs(mean) < 3 * error and min(equal) < 0
    other, low, high = metrics.kernel_distance_interval(cloud(300, 8, 0), cloud(300, 8, 1, 0.5), draws=30)
    assert 0 < low < other < high


def test_kernel_distance_against_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    a, b = cloud(50, 8), cloud(50, 8, 1, 0.5)
    expected = kid.poly_mmd(a, b, 3, None, 1.0)
    assert metrics.kernel_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)


def test_kernel_distance_by_hand():
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    # k(a0,a1) = 1, k(b0,b1) = 27; k(a,b) = 1, 1, 8, 27
    assert metrics.kernel_distance(a, b) == pytest.approx(1 + 27 - 2 * (1 + 1 + 8 + 27) / 4)


def test_precision_and_recall():
    real = cloud(400, 2)
    assert metrics.precision_recall(real, real) == (1.0, 1.0)
    narrow = 0.05 * cloud(400, 2, 1)                           # good pictures, all alike
    precision, recall = metrics.precision_recall(real, narrow)
    assert precision > 0.9 and recall < 0.1
    precision, recall = metrics.precision_recall(narrow, real)                  # the other way round they change places
    assert precision < 0.1 and recall > 0.9
    assert metrics.precision_recall(real, real + 100) == (0.0, 0.0)
    # by hand: radii (k = 1) of 0, 1, 3 are 1, 1, 2
    precision, recall = metrics.precision_recall(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[4.5], [6.0], [9.0]]), k=1)
    assert precision == pytest.approx(1 / 3) and recall == pytest.approx(1 / 3)
    with pytest.raises(UsageError, match="k must lie in 1 ... n - 1, got 400"):
        metrics.precision_recall(real, real, k=400)


def test_inception_score():
    sure = torch.eye(5).repeat(20, 1)
    assert metrics.inception_score(sure)[0] == pytest.approx(5)
    assert metrics.inception_score(torch.full((50, 5), 0.2))[0] == pytest.approx(1)
    assert metrics.inception_score(sure[[0] * 30])[0] == pytest.approx(1)       # sure, but always of the same
    with pytest.raises(ShapeError, match="sum to 1"):
        metrics.inception_score(2 * sure)


def test_inception_score_against_torchmetrics():
    module = pytest.importorskip("torchmetrics.image.inception")
    logits = 3 * cloud(90, 7).float()

    class Logits(torch.nn.Module):
        num_features = 7

        def forward(self, images):
            return images.flatten(1)
    try:
        theirs = module.InceptionScore(feature=Logits(), splits=1)
    except (ModuleNotFoundError, TypeError, ValueError) as error:
        pytest.skip(f"torchmetrics wants more: {error}")
    theirs.update(logits.view(90, 7, 1, 1))
    assert metrics.inception_score(logits.softmax(1))[0] == pytest.approx(theirs.compute()[0].item(), rel=1e-4)


def test_psnr_and_ssim_against_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image")
    a = torch.rand(3, 3, 32, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    b = (a + 0.2 * torch.randn(a.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    for i in range(3):
        x, y = (a[i: i + 1] + 1) / 2, (b[i: i + 1] + 1) / 2
        assert metrics.psnr(a, b)[i].item() == pytest.approx(
            functional.peak_signal_noise_ratio(x, y, data_range=1.0).item(), rel=1e-4)
        _, everywhere = functional.structural_similarity_index_measure(x, y, data_range=1.0, return_full_image=True)
        inside = everywhere[..., 5:-5, 5:-5].mean().item()     # theirs goes on over the border, with the picture mirrored
        assert metrics.ssim(a, b)[i].item() == pytest.approx(inside, rel=1e-4)
    assert metrics.ssim(a, a).tolist() == pytest.approx([1.0] * 3) and metrics.psnr(a, a).tolist() == [math.inf] * 3
    assert metrics.psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2)).item() == pytest.approx(20.0, rel=1e-6)
    with pytest.raises(ShapeError, match="at least 11 x 11"):
        metrics.ssim(a[..., :8], b[..., :8])


@pytest.mark.parametrize("a, b, error", [(torch.zeros(3, 2), torch.zeros(3, 4), ShapeError),
                                         (torch.zeros(1, 2), torch.zeros(3, 2), ShapeError),
                                         (torch.zeros(3, 2), torch.full((3, 2), torch.nan), UsageError)])
def test_clouds_that_cannot_be_compared(a, b, error):
    for metric in (metrics.frechet_distance, metrics.kernel_distance, metrics.precision_recall):
        with pytest.raises(error):
            metric(a, b)
