"""The grid of guidance and steps: counted right, drawn from equal noise, and written as a picture."""

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from course.data import Scenes
from course.data.captions import parse
from course.errors import UsageError
from course.evaluation import figures, sweep


class Painter:
    """Draws what is asked, but not at guidance 12; notes what it was asked for."""

    config, tokenizer = SimpleNamespace(image_size=64), SimpleNamespace(cut_off=lambda text: "")

    def __init__(self, prompts):
        scenes = Scenes(64, "test", objects=(2, 3), textures=("plain",), degraded=0.0)
        self.known = dict(zip(prompts, scenes.images(range(len(prompts))), strict=True))
        self.calls = []

    def latents(self, prompts, steps, guidance_scale, seed, sampler, progress):
        self.calls.append((steps, guidance_scale, prompts, seed, sampler))
        progress(1.0)
        return torch.stack([self.known[p] * (guidance_scale < 12) for p in prompts])

    def decode(self, x0):
        return x0


def test_wilson_against_its_equation():
    """Its ends are the shares p at which the observed one is z standard errors away (Wilson 1927)."""
    for right, total in ((0, 10), (3, 10), (10, 10), (87, 100)):
        low, high = sweep.wilson(right, total)
        assert 0 <= low <= right / total <= high <= 1 and high - low > 0
        for p in {low, high} - {0.0, 1.0}:
            assert abs(right / total - p) == pytest.approx(1.96 * (p * (1 - p) / total) ** 0.5)
    assert sweep.wilson(8, 10) == (pytest.approx(0.490, abs=1e-3), pytest.approx(0.943, abs=1e-3))


def test_cells_are_counted_and_share_their_noise(tmp_path, capsys):
    prompts = sweep.unseen(3, Painter)
    assert all(len(parse(p)["objects"]) in (2, 3) for p in prompts)
    short = SimpleNamespace(config=Painter.config, tokenizer=SimpleNamespace(cut_off=lambda text: text[60:]))
    assert all(len(parse(p)["objects"]) == 1 for p in sweep.unseen(3, short))
    painter, told = Painter(prompts), []
    cells, pictures = sweep.run(painter, prompts, [1.5, 12], [4, 8], [5, 6], "euler", batch=4, progress=told.append)
    assert [(c["steps"], c["guidance"], c["right"], c["pictures"]) for c in cells] == [
        (4, 1.5, 6, 6), (4, 12, 0, 6), (8, 1.5, 6, 6), (8, 12, 0, 6)]
    assert all((c["low"], c["high"]) == sweep.wilson(c["right"], 6) and c["all"] == c["rate"] for c in cells)
    assert cells[1]["count"] == 0.0 and cells[0]["place"] == 1.0
    drawn = {}
    for steps, scale, said, seeds, sampler in painter.calls:
        assert sampler == "euler" and len(said) <= 4
        drawn.setdefault((steps, scale), []).extend(zip(said, seeds, strict=True))
    assert len(drawn) == 4
    assert all(sorted(d) == sorted((p, s) for p in prompts for s in (5, 6)) for d in drawn.values())
    assert told == sorted(told) and told[-1] == pytest.approx(1.0)
    assert len(pictures) == 4 and torch.equal(pictures[0][1], painter.known[prompts[1]])
    figures.sweep(tmp_path / "grid.png", "title", cells, pictures)
    assert (tmp_path / "grid.png").stat().st_size < 300_000 and Image.open(tmp_path / "grid.png").width > 400
    sweep.print_table(cells)
    assert "100" in capsys.readouterr().out


def test_a_prompt_that_cannot_be_scored_is_refused():
    with pytest.raises(UsageError, match="'a dog': it knows circle"):
        sweep.run(None, ["a red ring", "a dog"], [1], [1], [0])


def test_heat_maps_are_laid_over_the_picture(tmp_path):
    """Where a word was looked at the picture is reddened, elsewhere it is as gray as it was."""
    picture, maps = Image.new("RGB", (64, 64), (0, 90, 200)), torch.zeros(1, 64, 64)
    maps[0, :, 32:] = 0.2
    figures.attention(tmp_path / "heat.png", "a ring", picture, ["ring"], maps)
    drawn = Image.open(tmp_path / "heat.png").convert("RGB")
    colors = {c for n, c in drawn.getcolors(1 << 20) if n > 5000}
    assert any(abs(r - 0) < 6 and abs(g - 90) < 6 and abs(b - 200) < 6 for r, g, b in colors)        # the picture itself
    assert any(abs(r - g) < 6 and abs(g - b) < 6 and r < 200 for r, g, b in colors)                  # gray
    assert any(r - b > 50 for r, g, b in colors)                                                     # red
