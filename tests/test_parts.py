"""The swap rule: replacing one attribute of one module replaces the part wherever it is used."""

import ast
from pathlib import Path

import pytest
import torch

import course
from course import lora, parts, samplers
from course.errors import UsageError
from course.pipeline import StableDiffusion
from course.tokenizer import Tokenizer
from course.training import diffusion
from tests.conftest import TINY

SOURCE = Path(course.__file__).parent
COMPONENTS = {name.split(".")[0] for name in parts.PARTS}


def test_no_module_binds_a_part_at_import():
    """`from course.attention import CrossAttention` would keep the original after a swap."""
    offences = []
    for path in SOURCE.rglob("*.py"):
        if path.parent.name == "classroom" or "checks" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[-1] in COMPONENTS \
                    and node.module.startswith("course."):
                offences += [f"{path.relative_to(SOURCE)}:{node.lineno} {a.name}" for a in node.names
                             if f"{node.module.split('.')[-1]}.{a.name}" in parts.PARTS]
    assert offences == []


def test_no_isinstance_dispatch_on_parts():
    for name in COMPONENTS | {"pipeline"}:
        for node in ast.walk(ast.parse((SOURCE / f"{name}.py").read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance":
                assert not any(isinstance(n, ast.Name) and n.id in {p.split(".")[1] for p in parts.PARTS}
                               for n in ast.walk(node.args[1])), name


def test_every_public_class_of_the_components_is_a_part():
    listed = set(parts.PARTS)
    for name in ("layers", "attention", "samplers"):
        tree = ast.parse((SOURCE / f"{name}.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert f"{name}.{node.name}" in listed


def _use_everything():
    """Train a step and generate, so that every part has had its turn."""
    tokens = course.tokenizer.Tokenizer.train(["a red ring"], num_merges=5, length=16)
    pipe = StableDiffusion(TINY, tokens)
    denoiser = diffusion.ConditionalDenoiser(pipe.unet, pipe.text_encoder)
    course.objectives.diffusion_loss(denoiser, pipe.schedule, torch.randn(2, 4, 8, 8), tokens(["a", "b"]), "v")
    course.objectives.diffusion_loss(denoiser, pipe.schedule, torch.randn(2, 4, 8, 8), tokens(["a", "b"]), "eps", min_snr_gamma=5)
    course.objectives.flow_matching_loss(denoiser, torch.randn(2, 4, 8, 8), tokens(["a", "b"]))
    pipe.vae(torch.randn(1, 3, 32, 32))
    course.presets.autoencoder(course.vq.VQConfig(block_channels=(32,), layers_per_block=1, num_codes=4))(torch.randn(1, 3, 8, 8))
    course.controlnet.ControlNet(course.controlnet.ControlNetConfig(TINY.unet, (16, 16)))
    lora.inject(course.unet.UNet(TINY.unet), targets=("to_q", "conv1"))
    return pipe


@pytest.mark.parametrize("name", parts.PARTS)
def test_a_counting_replacement_is_used(name):
    import importlib
    module, attribute = name.split(".")
    original = getattr(importlib.import_module(f"course.{module}"), attribute)
    count = 0
    if isinstance(original, type):
        class Counting(original):
            def __init__(self, *args, **kwargs):
                nonlocal count
                count += 1
                super().__init__(*args, **kwargs)
        replacement = Counting
    else:
        def replacement(*args, **kwargs):
            nonlocal count
            count += 1
            return original(*args, **kwargs)
    with parts.swapped({name: replacement}):
        pipe = _use_everything()
    before_generating = count
    for sampler in samplers.SAMPLERS:                    # outside the block: the pipeline remembers its mapping
        pipe.generate("a red ring", steps=2, seed=0, sampler=sampler)
    assert count > 0
    if name.startswith("samplers.") or name in ("guidance.classifier_free_guidance", "layers.timestep_embedding",
                                                "attention.attend"):
        assert count > before_generating, f"{name} was not swapped while generating"
    count = 0
    _use_everything().generate("a red ring", steps=2, seed=0)
    assert count == 0, "the swap outlived its block"


def test_nesting_restores_and_unknown_names_are_refused():
    original = samplers.ddim
    with parts.swapped({"samplers.ddim": 1}):
        with parts.swapped({"samplers.ddim": 2}):
            assert samplers.ddim == 2 and parts.active() == {"samplers.ddim": 2}
        assert samplers.ddim == 1
    assert samplers.ddim is original and parts.active() == {}
    with pytest.raises(ZeroDivisionError), parts.swapped({"samplers.ddim": 1}):
        raise ZeroDivisionError
    assert samplers.ddim is original
    with pytest.raises(UsageError, match="samplers.plms"), parts.swapped({"samplers.plms": 1}):
        pass


def test_importing_the_package_imports_nothing_heavy():
    import subprocess
    import sys
    code = "import sys, course, course.cli; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=SOURCE.parent)
    assert done.stdout.split() == ["False", "False"], done.stderr


def test_a_swapped_tokenizer_class_is_used():
    class Shouting(Tokenizer):
        pass
    with parts.swapped({"tokenizer.Tokenizer": Shouting}):
        assert isinstance(_use_everything().tokenizer, Shouting)
