"""Shared by all tests: few threads, small models, and where facts about released files are kept."""

import os
from pathlib import Path

import pytest
import torch

from course import presets, text, unet, vae
from course.pipeline import StableDiffusion
from course.tokenizer import Tokenizer

# `make test` has a process for each core: threads beside them would wait for each other
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else int(os.environ.get("OMP_NUM_THREADS", 2)))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of reference data that is not part of the repository."""
    folder = os.environ.get("COURSE_TEST_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set COURSE_TEST_DATA to the folder of reference data to run this test")
    return Path(folder)


TINY_UNET = unet.UNetConfig(in_channels=4, out_channels=4, block_channels=(32, 64), layers_per_block=1, depth=(0, 1),
                            heads=(1, 2), context_dim=16)
TINY_VAE = vae.VAEConfig(block_channels=(32, 32), layers_per_block=1, stem=2)
TINY_TEXT = text.TextConfig(vocab_size=600, length=16, width=16, layers=2, heads=2)
TINY = presets.PipelineConfig(TINY_UNET, TINY_VAE, TINY_TEXT, presets.ScheduleConfig(), image_size=32, predict="v",
                              guidance_scale=2.0, spacing="trailing", offset=0)


@pytest.fixture
def tokens() -> Tokenizer:
    return Tokenizer.train(["a small red circle on a white background"] * 3, num_merges=40, length=16)


@pytest.fixture
def pipe(tokens) -> StableDiffusion:
    torch.manual_seed(0)
    return StableDiffusion(TINY, tokens)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights everywhere, so that no zero or one of an initialisation hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator) + (1.0 if p.ndim == 1 else 0.0) * 0.5)
    return module


@pytest.fixture
def command_line(monkeypatch, capsys):
    """`course` and these words, in this process; (exit code, stdout, stderr)."""
    from course import cli

    def run(*words):
        monkeypatch.setattr("sys.argv", ["course", *words])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()
    return run
