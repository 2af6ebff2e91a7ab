"""Caches: what is read back is what was computed, once, and never what belongs to another network."""

import pytest
import torch

from course import text, vae
from course.data import latents, shards
from course.errors import ShapeError


def test_rows_are_a_tensor_in_pieces():
    whole = torch.randn(11, 3, 2)
    rows = shards.Rows([whole[:4], whole[4:8], whole[8:]])
    assert rows.shape == (11, 3, 2) and len(rows) == 11
    which = torch.tensor([[10, 0, 3], [4, 7, 8]])
    assert torch.equal(rows[which], whole[which]) and rows[which[0, :0]].shape == (0, 3, 2)
    for bad in (11, -1):
        with pytest.raises(IndexError, match="0 ... 10"):
            rows[torch.tensor([bad])]
    with pytest.raises(ShapeError, match="alike"):
        shards.Rows([whole, whole[:, :2]])


def test_cached_rows_are_computed_once_and_mended(tmp_path):
    values, calls = torch.arange(10.0)[:, None], []

    def compute(start, stop):
        calls.append((start, stop))
        return {"a": values[start: stop], "b": -values[start: stop]}

    def read(count=10, key="k"):
        calls.clear()
        return shards.cached(tmp_path, "x", count, compute, key, size=4)
    rows = read()
    assert calls == [(0, 4), (4, 8), (8, 10)] and torch.equal(rows["b"][torch.arange(10)], -values)
    read()
    assert calls == []
    path = tmp_path / "x-00001.safetensors"
    path.write_bytes(path.read_bytes()[:20])                   # cut short, as by a full disk
    assert torch.equal(read()["a"][torch.arange(10)], values) and calls == [(4, 8)]
    read(count=9)
    assert calls == [(8, 9)]                                   # the last file had another number of rows
    read(key="another network")
    assert calls == [(0, 4), (4, 8), (8, 10)]


def test_a_mapped_cache_takes_no_memory(tmp_path):
    """64 MB are mapped; touching one row brings in pages, not the file."""
    import psutil
    shards.cached(tmp_path, "x", 2, lambda start, stop: {"a": torch.ones(stop - start, 2**23)}, size=2)
    before = psutil.Process().memory_info().rss
    rows = shards.cached(tmp_path, "x", 2, None, size=2)["a"]
    assert rows.pieces[0][1, 5] == 1 and psutil.Process().memory_info().rss - before < 16 * 2**20


def test_latents_belong_to_their_autoencoder(tmp_path):
    config = vae.VAEConfig(block_channels=(32, 32), layers_per_block=1, mid_attention=False)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8)
    first, second = vae.AutoencoderKL(config), vae.AutoencoderKL(config)
    a, std = latents.cached(tmp_path, first, images, size=4)
    b, _ = latents.cached(tmp_path, second, images, size=4)
    everything = torch.arange(6)
    assert not torch.allclose(a[everything], b[everything])
    mean, spread = a[everything], std[everything]
    assert latents.measured_scale(a, std) == pytest.approx(float((mean.var(correction=0) + (spread**2).mean()) ** -0.5))


def test_contexts_are_what_the_encoder_says(tmp_path):
    encoder = text.TextEncoder(text.TextConfig(vocab_size=20, length=5, width=16, layers=1, heads=2)).eval()
    ids = torch.randint(20, (7, 3, 5))
    ids[3] = ids[0]                                            # two pictures with the same captions: encoded once
    contexts = latents.Contexts(tmp_path, encoder, ids, size=4)
    assert len(contexts.rows) == len(ids.view(-1, 5).unique(dim=0)) and contexts.shape == (7, 3, 5, 16)
    chosen, which = torch.tensor([3, 6, 0]), torch.tensor([0, 2, 1])
    with torch.no_grad():
        assert torch.allclose(contexts[chosen, which], encoder(ids[chosen, which]), atol=1e-6)
