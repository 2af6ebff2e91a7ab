import pytest
import torch

from course import presets
from course.training import autoencoder, loop
from course.training.autoencoder import AutoencoderLoss, Trainee
from course.vae import AutoencoderKL, VAEConfig
from course.vq import VQAutoencoder, VQConfig

SMALL = dict(block_channels=(32, 32), layers_per_block=1, mid_attention=False)


def test_everything_learns_from_one_backward():
    torch.manual_seed(0)
    model = Trainee(AutoencoderKL(VAEConfig(**SMALL)), AutoencoderLoss(adversarial=0.5))
    x, noise = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 4, 16, 16)
    for used, critic_learns in ((0.0, False), (0.45, True), (0.9, True)):
        model.zero_grad()
        loss, figures = model(x, noise, used)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())
        ends = model.autoencoder.encoder.conv_in.weight, model.autoencoder.decoder.conv_out.weight
        assert all(p.grad.abs().sum() > 0 for p in ends)
        moved = sum(p.grad.abs().sum() for p in model.critic.parameters())
        assert (moved > 0) == critic_learns and ("critic" in figures) == critic_learns


def test_the_critic_is_no_part_of_what_the_autoencoder_pays():
    """Its own loss must not reach the autoencoder, and the autoencoder's must not reach it."""
    torch.manual_seed(0)
    model = Trainee(AutoencoderKL(VAEConfig(**SMALL)), AutoencoderLoss(adversarial=0.5))
    x, noise = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 4, 16, 16)
    without = Trainee(model.autoencoder, AutoencoderLoss())
    gradients = []
    for trainee, used in ((without, 0.45), (model, 0.45), (model, 0.9)):
        model.zero_grad()
        trainee(x, noise, used)[0].backward()
        gradients.append((model.autoencoder.decoder.conv_out.weight.grad.clone(),
                          model.critic.main[0].weight.grad.clone() if trainee is model else None))
    assert torch.allclose(gradients[0][0], gradients[1][0], atol=1e-7)          # the critic learns, unheard
    assert not torch.allclose(gradients[1][0], gradients[2][0], atol=1e-4)      # now it is heard ...
    assert torch.allclose(gradients[1][1], gradients[2][1], atol=1e-6)          # ... and still learns from its own loss alone


def test_a_codebook_logs_its_perplexity(tmp_path):
    import json
    torch.manual_seed(0)
    model = VQAutoencoder(VQConfig(**SMALL, num_codes=16, ema_decay=0.9, restart_below=0.1))
    images = torch.randint(0, 256, (16, 3, 16, 16), dtype=torch.uint8)
    autoencoder.train(model, images, tmp_path, loop.Budget(steps=20), loop.LoopConfig(batch_size=4), quiet=True)
    line = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert 1 <= line["perplexity"] <= 16 and line["psnr"] > 0 and line["step"] == 20


@pytest.mark.slow
def test_switching_the_critic_on_does_not_wreck_reconstruction(tmp_path):
    """The logged PSNR after the critic is heard is no worse than before (a frequent complaint about other code)."""
    import json

    from course import pixels
    from course.data import Scenes
    torch.manual_seed(0)
    images = pixels.to_bytes(Scenes(32, objects=(1, 1), degraded=0.0).images(range(256)))
    model = presets.autoencoder(VAEConfig(**SMALL, stem=2))
    autoencoder.train(model, images, tmp_path, loop.Budget(steps=240), loop.LoopConfig(batch_size=8, lr=3e-3, warmup_images=100),
                      AutoencoderLoss(adversarial=0.5, critic_learns=0.3, critic_counts=0.5), quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    psnr = {line["step"]: line["psnr"] for line in lines}
    before = sum(psnr[s] for s in range(80, 121, 10)) / 5
    after = sum(psnr[s] for s in range(200, 241, 10)) / 5
    assert after > before - 0.5 and "critic" in lines[-1]


def test_the_critic_learns_at_a_pace_of_its_own():
    trainee = autoencoder.Trainee(presets.build("demo-vae"), autoencoder.AutoencoderLoss(adversarial=0.5, critic_pace=0.25))
    first, second = loop.groups_of(trainee)
    assert (first["pace"], second["pace"]) == (1.0, 0.25)
    assert {id(p) for p in second["params"]} == {id(p) for p in trainee.critic.parameters()}
    assert len(first["params"]) == len(list(trainee.autoencoder.parameters()))
