import copy

import pytest
import torch

from course.errors import ShapeError, UsageError
from course.vq import VectorQuantizer, VQAutoencoder, VQConfig, usage
from tests.conftest import randomise

TINY_VQ = VQConfig(block_channels=(32, 32), layers_per_block=1, num_codes=16, latent_channels=3)


def spread(quantizer: VectorQuantizer, seed: int = 0) -> VectorQuantizer:
    """Codes far apart from each other."""
    quantizer.embedding.weight.data = torch.randn(quantizer.embedding.weight.shape, generator=torch.Generator().manual_seed(seed))
    return quantizer


def test_nearest_code_by_the_definition():
    q, z = spread(VectorQuantizer(50, 3)), torch.randn(2, 3, 4, 5)
    z_q, _, indices = q(z)
    by_hand = (z.permute(0, 2, 3, 1)[..., None, :] - q.embedding.weight).square().sum(-1).argmin(-1)
    assert torch.equal(indices, by_hand)
    assert torch.allclose(z_q, q.embedding.weight[by_hand].permute(0, 3, 1, 2), atol=1e-6)


def test_the_gradient_goes_straight_through():
    q = spread(VectorQuantizer(50, 3))
    z = torch.randn(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(2, 3, 4, 4)
    (q(z)[0] * weight).sum().backward()
    assert torch.equal(z.grad, weight)


def test_loss_is_codebook_plus_beta_times_commitment():
    q = spread(VectorQuantizer(8, 2, beta=0.25))
    z = torch.randn(3, 2, 4, 4, requires_grad=True)
    _, loss, indices = q(z)
    code = q.lookup(indices)
    assert loss.item() == pytest.approx(1.25 * (z - code).square().mean().item(), rel=1e-5)
    loss.backward()
    assert torch.allclose(z.grad, 0.25 * 2 * (z - code) / z.numel(), atol=1e-7)         # z moves to its code at a quarter
    moved = q.embedding.weight.grad[indices[0, 0, 0]]                                   # of the speed of the code itself
    chosen = (indices == indices[0, 0, 0])[:, None]
    assert torch.allclose(moved, (2 * (code - z) / z.numel() * chosen).sum((0, 2, 3)), atol=1e-7)


def test_quantiser_against_diffusers():
    module = pytest.importorskip("diffusers.models.autoencoders.vae")
    theirs = module.VectorQuantizer(32, 4, beta=0.25, legacy=False)
    ours = VectorQuantizer(32, 4)
    theirs.embedding.weight.data.normal_()
    ours.load_state_dict(theirs.state_dict())
    z = torch.randn(2, 4, 5, 5)
    expected, loss, (_, _, indices) = theirs(z)
    mine, my_loss, my_indices = ours(z)
    assert torch.equal(my_indices.flatten(), indices.flatten()) and torch.allclose(mine, expected, atol=1e-6)
    assert my_loss.item() == pytest.approx(loss.item(), rel=1e-5)
    # the default of diffusers has beta on the codebook's term: another loss gradient, the same value where both are summed
    legacy = module.VectorQuantizer(32, 4, beta=0.25)
    assert legacy.legacy


def test_autoencoder_against_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = randomise(diffusers.VQModel(
        block_out_channels=(128, 128), down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"), layers_per_block=1,
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), latent_channels=3, num_vq_embeddings=64)).eval()
    ours = VQAutoencoder(VQConfig(block_channels=(128, 128), layers_per_block=1, num_codes=64,
                                  level_attention=(False, True))).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 32, 32)
    z = theirs.encode(x).latents
    assert (ours.encode(x) - z).abs().max() <= 1e-4 * z.abs().max()
    expected = theirs.decode(z).sample
    assert (ours.decode(z) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_running_averages_are_the_mean_of_what_chose_a_code():
    """Where the z do not move, each code ends at the mean of its cluster."""
    centers = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 4.0]])
    which = torch.arange(300) % 3
    z = (centers[which] + 0.1 * torch.randn(300, 2)).T.reshape(1, 2, 30, 10)
    q = VectorQuantizer(3, 2, ema_decay=0.9).train()
    q.embedding.weight.data = centers + 0.5
    for _ in range(100):
        _, loss, _ = q(z)
    means = torch.stack([z.reshape(2, -1).T[which == k].mean(0) for k in range(3)])
    assert torch.allclose(q.embedding.weight, means, atol=1e-4)
    assert not loss.requires_grad                              # codes have no gradient, and z is a constant here
    q.eval()
    before = q.embedding.weight.clone()
    q(z + 1)
    assert torch.equal(before, q.embedding.weight)             # evaluation changes nothing


@pytest.mark.parametrize("ema", [None, 0.9])
def test_dead_codes_move_to_where_they_are_needed(ema):
    """All codes but one start out of reach; with restarts most of the book is read, without them one code."""
    torch.manual_seed(0)
    z = torch.randn(4, 2, 16, 16)

    def used(restart):
        q = VectorQuantizer(16, 2, ema_decay=ema, restart_below=restart).train()
        q.embedding.weight.data = torch.full((16, 2), 50.0)
        q.embedding.weight.data[0] = 0.0
        optimiser = torch.optim.Adam(q.parameters(), lr=0.05) if ema is None else None
        for _ in range(60):
            _, loss, indices = q(z)
            if optimiser:                                      # without running averages the codes learn by gradient
                optimiser.zero_grad(), loss.backward(), optimiser.step()
        return usage(indices, 16)
    assert used(None)["used"] == 1 / 16 and used(0.1)["used"] >= 0.8
    assert used(0.1)["perplexity"] > 6


def test_usage_in_closed_form():
    assert usage(torch.tensor([0, 1, 2, 3]), 4) == pytest.approx({"perplexity": 4.0, "used": 1.0})
    assert usage(torch.zeros(2, 3, 3, dtype=torch.long), 4) == pytest.approx({"perplexity": 1.0, "used": 0.25})


def test_shapes_gradients_and_misuse():
    model = randomise(VQAutoencoder(TINY_VQ))
    x = torch.randn(2, 3, 16, 16)
    rebuilt, loss, indices = model(x)
    assert rebuilt.shape == x.shape and indices.shape == (2, 8, 8)
    (rebuilt.square().mean() + loss).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().sum() == 0] == []
    with pytest.raises(ShapeError, match="B,3,H,W"):
        model.encode(torch.randn(1, 3, 15, 16))
    with pytest.raises(ShapeError, match="B,4,h,w"):
        VectorQuantizer(8, 4)(torch.zeros(1, 3, 2, 2))
    with pytest.raises(UsageError, match="ema_decay"):
        VectorQuantizer(8, 4, ema_decay=1.5)


def test_half_precision_changes_no_code_and_breaks_no_average():
    """Under autocast z comes in bfloat16; which code is nearest, and the running averages, are computed in float32."""
    torch.manual_seed(0)
    a = VectorQuantizer(64, 4, ema_decay=0.9, restart_below=0.1)
    z = torch.randn(2, 4, 8, 8).bfloat16()
    b = copy.deepcopy(a)
    with torch.autocast("cpu", torch.bfloat16):
        found = a(z)
    for got, wanted in zip(found, b(z.float()), strict=True):
        assert torch.equal(got, wanted) and got.dtype == wanted.dtype
    assert torch.equal(a.total, b.total) and torch.equal(a.embedding.weight, b.embedding.weight)
