"""A model that draws exactly what is asked gets full marks; one that draws something else gets none."""

from types import SimpleNamespace

import torch

from course.data import Scenes
from course.evaluation import fidelity


class Painter:
    """Draws the scene of whatever prompt it is given, or always the same one."""

    config, device = SimpleNamespace(image_size=64, vae="some"), "cpu"

    def __init__(self, stubborn: bool):
        self.stubborn, self.known = stubborn, {}
        for split, n in (("test", 24), ("heldout", 8)):
            data = Scenes(64, split, objects=(1, 2), textures=("plain",), degraded=0.0)
            self.known |= dict(zip(data.captions(range(n), full=True), data.images(range(n)), strict=True))

    def latents(self, prompts, **_):
        first = next(iter(self.known.values()))
        return torch.stack([first if self.stubborn or not p else self.known[p] for p in prompts])

    def encode_image(self, images):
        return images

    def decode(self, x0):
        return x0


def test_rates_by_split_and_number_of_objects():
    done = []
    rows, drawn = fidelity.measure(Painter(False), 24, (1, 2), batch=10, progress=done.append)
    assert {(r["split"], r["objects"]) for r in rows} == {("test", 1), ("test", 2), ("heldout", 1), ("heldout", 2)}
    assert all(r["all"] == 1.0 for r in rows) and sum(r["prompts"] for r in rows) == 32
    assert drawn["test"].shape == (24, 3, 64, 64) and drawn["test"].dtype == torch.uint8 and done == sorted(done)
    assert rows[0]["all_low"] < 1.0 == rows[0]["all_high"] and rows[0]["binding"] is None and rows[1]["binding"] == 1.0
    wrong, _ = fidelity.measure(Painter(True), 24, (1, 2))
    assert max(r["all"] for r in wrong) < 0.2


def test_baselines():
    """A painter that paints what it is asked, and always the same where nothing is."""
    done = []
    rows, drawn = fidelity.measure(Painter(False), 24, (1, 2), batch=10, progress=done.append, baselines=True)
    by = {split: [r for r in rows if r["split"] == split] for split in ("real", "autoencoder", "shuffled", "no prompt")}
    assert all(sum(r["prompts"] for r in own) == 24 for own in by.values()) and done == sorted(done) and done[-1] == 1
    assert all(r["all"] == 1.0 for split in ("real", "autoencoder") for r in by[split])
    assert max(r["all"] for split in ("shuffled", "no prompt") for r in by[split]) < 0.2 and len(drawn["no prompt"]) == 24


def thing(shape, color):
    return SimpleNamespace(shape=shape, color=color)


def test_binding():
    def said(*pairs):
        return SimpleNamespace(objects=tuple(thing(*p) for p in pairs))
    asked = said(("ring", "red"), ("star", "blue"))
    assert fidelity.bound(said(("star", "blue"), ("ring", "red")), asked) is True
    assert fidelity.bound(said(("star", "red"), ("ring", "blue")), asked) is False
    assert fidelity.bound(said(("star", "red"), ("ring", "red")), asked) is None        # a colour is missing: that is no exchange
    assert fidelity.bound(said(), asked) is None
    assert fidelity.bound(asked, said(("ring", "red"), ("ring", "blue"))) is None       # nothing to exchange
