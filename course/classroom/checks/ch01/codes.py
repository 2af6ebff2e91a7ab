"""Exercises 6 and 7: how far a picture is from another, and the best linear code of its patches."""

import torch

from course.classroom.checks import Exercise, compare, normal, tensor_like, touched
from course.classroom.checks.ch01.answers import PatchPCA, psnr

# ---- 6 · PSNR

PSNR = Exercise("pixels.psnr", points=2, minutes=5, reference=psnr)


@PSNR.gate("one number a picture: (B,C,H,W), (B,C,H,W) -> (B,)")
def _(fn):
    return tensor_like(fn(normal((2, 3, 4, 5), 1), normal((2, 3, 4, 5), 2)), (2,))


@PSNR.property("worked by hand: off by 0.2 everywhere is 20 dB, by 0.02 it is 40 dB")
def _(fn):
    x = torch.zeros(2, 1, 2, 3)
    mse, right = torch.tensor([0.04, 0.0004]).double(), torch.tensor([20.0, 40.0]).double()
    ten = 10 * torch.log10(1 / mse)
    return compare(fn(x, x + torch.tensor([0.2, 0.02]).reshape(2, 1, 1, 1)), right, {
        "values run from -1 to 1, so the peak is 2, not 1: you are 6 dB short": ten,
        "the peak is squared: 4 / mse, not 2 / mse": 10 * torch.log10(2 / mse),
        "the sign is turned: a small error is a large PSNR": -right,
        "a decibel is 10 log10 of a ratio of powers: the factor 10 is missing": right / 10,
        "20 log10 goes with amplitudes: mse is a power, so 10 log10, or take its root": 2 * right,
        "log10, not the natural logarithm": 10 * torch.log(4 / mse),
        "the peak is 2 for values in [-1, 1], not 255": 10 * torch.log10(255**2 / mse),
        "squared errors are summed: take their mean": 10 * torch.log10(4 / (6 * mse)),
        "all pictures got the mean of the batch": (10 * torch.log10(4 / mse.mean())).expand(2),
        "this is the absolute error: square it": 10 * torch.log10(4 / mse.sqrt())}, rtol=1e-3)


@PSNR.property("errors are averaged over all values of a picture, and of that picture alone")
def _(fn):
    x = normal((3, 3, 4, 6), 3)
    y = x + normal((3, 3, 4, 6), 4) * torch.tensor([0.01, 0.1, 1.0]).reshape(3, 1, 1, 1)
    square = (x - y).double().pow(2)
    return compare(fn(x, y), psnr(x.double(), y.double()), {
        "all pictures got the mean of the batch: average over the last three axes": (
            10 * torch.log10(4 / square.mean())).expand(3),
        "this is the absolute error: square it": 10 * torch.log10(4 / (x - y).double().abs().mean((1, 2, 3))),
        "squared errors are summed: take their mean": 10 * torch.log10(4 / square.sum((1, 2, 3))),
        "a mean of dB values is not the dB of the mean: average the squares first": (
            10 * torch.log10(4 / square)).mean((1, 2, 3))}, rtol=1e-3)


@PSNR.property("symmetric, and without bound as the error goes to zero")
def _(fn):
    x, y = normal((1, 3, 4, 4), 5), normal((1, 3, 4, 4), 6)
    if problem := compare(fn(x, y), fn(y, x).detach().double()):
        return f"the two pictures may not be exchanged: {problem}"
    if not float(fn(x, x)) > 90:
        return f"equal pictures should give infinity, or at least 90 dB, got {float(fn(x, x)):.1f}"


@PSNR.hygiene("leaves both pictures as they were")
def _(fn):
    return touched(fn, normal((2, 3, 4, 4), 7), normal((2, 3, 4, 4), 8))


# ---- 7 · PCA of patches

PATCH_PCA = Exercise("vae.PatchPCA", points=4, minutes=20, reference=PatchPCA)


def mixtures(count: int, f: int, side: int, seed: int, strengths=(3.0, 1.0)):
    """Pictures whose patches are an offset plus two fixed patterns in random amounts; (B,3,side,side)."""
    patterns = torch.linalg.qr(normal((3 * f * f, 2), 1))[0]                            # (3ff,2)
    n = side // f
    amounts = normal((count, n, n, 2), seed) * torch.tensor(strengths)
    offset = normal((3 * f * f,), 2)
    patches = (amounts @ patterns.T + offset).movedim(-1, 1)                            # (B,3ff,n,n)
    return torch.nn.functional.pixel_shuffle(patches, f)


@PATCH_PCA.gate("PatchPCA(images, f, c): encode (B,3,H,W) -> (B,c,H/f,W/f), decode goes back")
def _(fn):
    code = fn(normal((4, 3, 8, 8), 1), 4, 5)
    z = code.encode(normal((2, 3, 8, 16), 2))
    if problem := tensor_like(z, (2, 5, 2, 4)):
        return f"encode: {problem}"
    if problem := tensor_like(code.decode(z), (2, 3, 8, 16)):
        return f"decode: {problem}"


@PATCH_PCA.property("patches of two patterns need two numbers: new pictures come back exactly")
def _(fn):
    code, new = fn(mixtures(16, 2, 8, 3), 2, 2), mixtures(2, 2, 12, 4)
    back = code.decode(code.encode(new))
    if problem := compare(back, new, rtol=1e-3):
        off = torch.nn.functional.pixel_unshuffle(back - new, 2)                        # (B,12,h,w)
        everywhere = float(off.std((0, 2, 3)).max()) < 1e-3
        if not everywhere and float(off.pow(2).mean()) > 0.2:
            return ("the patches were not recovered at all: eigh sorts from the smallest variance up, and you want the "
                    f"largest; or patches are put back in another order ({problem})")
        return f"the offset that all patches share is lost: is the mean subtracted, and added again? ({problem})"


@PATCH_PCA.property("one number a patch: the stronger pattern is kept")
def _(fn):
    images = mixtures(16, 2, 8, 5)
    code = fn(images, 2, 1)
    mine, best = code.decode(code.encode(images)), PatchPCA(images, 2, 1)
    error, least = (float((x - images).pow(2).mean()) for x in (mine, best.decode(best.encode(images))))
    if error > 1.01 * least + 1e-9:
        return (f"mean squared error {error:.4g}, possible is {least:.4g}: are these the directions of the largest "
                "variance about the mean?")


@PATCH_PCA.property("channels have mean 0, do not correlate, and come in order of their variance")
def _(fn):
    images = normal((16, 3, 8, 8), 6).cumsum(-1) * 0.3 + 1
    z = fn(images, 4, 6).encode(images).detach().double().movedim(1, 0).flatten(1)     # (6,n)
    if float(z.mean(1).abs().max()) > 1e-3 * float(z.std()):
        return "the channels do not have mean 0 over the pictures it was made of: subtract the mean patch before projecting"
    variance = z.var(1)
    if not bool((variance[:-1] >= variance[1:] * 0.999).all()):
        return "the channels must come in order of variance, largest first: eigh sorts from the smallest up, svd does not"
    off = torch.corrcoef(z) - torch.eye(6, dtype=torch.float64)
    if float(off.abs().max()) > 0.01:
        return f"two channels correlate by {float(off.abs().max()):.2f}: eigenvectors of the covariance do not"


@PATCH_PCA.property("with all 3 f f channels nothing is lost, and latents are as long as patches")
def _(fn):
    images, new = normal((32, 3, 8, 8), 7), normal((2, 3, 8, 8), 8)
    code = fn(images, 2, 12)
    z = code.encode(new)
    if problem := compare(code.decode(z), new, rtol=1e-3):
        return problem
    zero = code.encode(torch.zeros(1, 3, 2, 2))
    length = (z - zero).pow(2).sum()
    return compare(length, new.pow(2).sum().double(), {}, rtol=1e-3) and (
        "the basis is not orthonormal: eigenvectors have length 1, so do not scale them")


@PATCH_PCA.property("one patch, one position: each latent position sees its own f x f pixels only")
def _(fn):
    images = normal((16, 3, 8, 12), 9)
    code = fn(images, 4, 4)
    changed = images.clone()
    changed[:, :, 4:8, 8:12] += 1
    moved = (code.encode(changed) - code.encode(images)).abs().amax((0, 1)) > 1e-4      # (2,3)
    right = torch.zeros(2, 3, dtype=torch.bool)
    right[1, 2] = True
    if not torch.equal(moved, right):
        return ("the patch in the second row and third column changed, and other latent positions moved: rows, columns "
                "and channels are mixed up by a reshape")


@PATCH_PCA.property("equals the course's code, up to the sign of each channel")
def _(fn):
    images, new = normal((16, 3, 8, 8), 10).cumsum(-2), normal((2, 3, 8, 8), 11)
    mine, own = fn(images, 2, 3), PatchPCA(images.double(), 2, 3)
    if problem := compare(mine.encode(new).abs(), own.encode(new.double()).abs(), rtol=5e-3):
        return f"absolute latent values: {problem}"
    return compare(mine.decode(mine.encode(new)), own.decode(own.encode(new.double())), rtol=5e-3)


@PATCH_PCA.hygiene("leaves the pictures as they were")
def _(fn):
    images = normal((4, 3, 8, 8), 12)
    return touched(lambda x, y: fn(x, 2, 3).encode(y), images, normal((1, 3, 4, 4), 13))
