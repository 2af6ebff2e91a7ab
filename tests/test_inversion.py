"""Textual inversion: a word more, and nothing else changed."""

import pytest
import torch
from safetensors.torch import save_file

from course import inversion
from course.errors import CheckpointError, UsageError
from course.pipeline import StableDiffusion


def table(pipe):
    return pipe.text_encoder.text_model.embeddings.token_embedding.weight


def test_a_word_that_means_what_another_means_draws_the_same(pipe):
    before = pipe.latents("a circle", steps=2, seed=0)
    size, = {len(table(pipe))}
    new = inversion.begin(pipe, "<thing>", like="circle")
    one_token = len(pipe.tokenizer.encode("circle")) == 1
    assert pipe.tokenizer.encode("a <thing>!")[1] == size and one_token
    assert torch.equal(pipe.latents("a <thing>", steps=2, seed=0), before)
    assert [n for n, p in new.named_parameters()] == ["new"]
    inversion.end(pipe)
    assert torch.equal(pipe.latents("a <thing>", steps=2, seed=0), before)
    assert torch.equal(pipe.latents("a circle", steps=2, seed=0), before)
    assert len(table(pipe)) == size + 1 == pipe.config.text.vocab_size


def test_only_the_new_vectors_learn(pipe):
    old = table(pipe).detach().clone()
    new = inversion.begin(pipe, "<thing>", count=2)
    assert len(pipe.tokenizer.encode("<thing>")) == 2
    for module in pipe.modules().values():
        module.requires_grad_(False)
    new.requires_grad_(True)
    ids = pipe.tokenizer("a <thing>")
    pipe.text_encoder(ids).square().sum().backward()
    assert new.new.grad.abs().sum(1).min() > 0
    with torch.no_grad():
        new.new += 1.0
    inversion.end(pipe)
    assert torch.equal(table(pipe)[:-2], old)


def test_files_of_ours_and_of_others(pipe, tokens, tmp_path):
    other = StableDiffusion(pipe.config, type(tokens)(tokens.merges, tokens.length))
    other.text_encoder.load_state_dict(pipe.text_encoder.state_dict())
    other.unet.load_state_dict(pipe.unet.state_dict())
    other.vae.load_state_dict(pipe.vae.state_dict())
    new = inversion.begin(pipe, "<thing>", count=2)
    with torch.no_grad():
        new.new.normal_()
    inversion.end(pipe)
    inversion.save(pipe, "<thing>", tmp_path / "learned_embeds.safetensors")
    assert inversion.load(other, tmp_path / "learned_embeds.safetensors") == "<thing>"
    assert torch.equal(other.latents("a <thing>", steps=2, seed=0), pipe.latents("a <thing>", steps=2, seed=0))
    save_file({"emb_params": torch.randn(1, 16)}, tmp_path / "Cat.safetensors")                  # as web UIs write it
    assert inversion.load(other, tmp_path / "Cat.safetensors") == "<cat>"
    save_file({"<dog>": torch.randn(16)}, tmp_path / "dog.safetensors")                          # as diffusers once did
    assert inversion.load(other, tmp_path / "dog.safetensors", word="<hound>") == "<hound>"
    # the whole pipeline can be saved with its new words, and prompts are read back in them
    other.save(tmp_path / "model")
    again = StableDiffusion.load(tmp_path / "model")
    assert again.tokenizer.decode(again.tokenizer.encode("a <thing> <hound>")) == "a <thing> <hound>"
    assert torch.equal(again.latents("a <hound>", steps=2, seed=0), other.latents("a <hound>", steps=2, seed=0))


def test_against_diffusers(pipe, tmp_path):
    """The same file, loaded by both: the same ids, the same vectors behind them."""
    diffusers = pytest.importorskip("diffusers")
    from course.evaluation import parity_pipelines as small
    theirs, ours = small.stable_diffusion(tmp_path)
    save_file({"<thing>": torch.randn(32)}, tmp_path / "learned_embeds.safetensors")
    theirs.load_textual_inversion(str(tmp_path), weight_name="learned_embeds.safetensors")
    inversion.load(ours, tmp_path / "learned_embeds.safetensors")
    ids = theirs.tokenizer("a small <thing>", padding="max_length", return_tensors="pt").input_ids
    assert torch.equal(ours.tokenizer("a small <thing>"), ids) and diffusers
    expected = theirs.text_encoder(ids).last_hidden_state
    assert (ours.text_encoder(ids) - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("how, said", [({"word": "two words"}, "lower case and without spaces"), ({"word": ""}, "got ''"),
                                       ({"word": "<Thing>"}, "got '<Thing>'"), ({"word": "<|endoftext|>"}, "already"),
                                       ({"word": "<x>", "count": 0}, "at least one vector, got 0"),
                                       ({"word": "<x>", "like": " "}, "has no tokens")])
def test_words_that_cannot_be(pipe, how, said):
    with pytest.raises(UsageError, match=said.replace("|", r"\|")):
        inversion.begin(pipe, **how)


def test_files_that_do_not_fit(pipe, tmp_path):
    save_file({"<x>": torch.randn(768)}, tmp_path / "sd.safetensors")
    with pytest.raises(CheckpointError, match="another text encoder: expected vectors of 16 numbers"):
        inversion.load(pipe, tmp_path / "sd.safetensors")
    save_file({"a": torch.randn(16), "b": torch.randn(16)}, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match="expected one tensor in it, got a, b"):
        inversion.load(pipe, tmp_path / "two.safetensors")
    with pytest.raises(UsageError, match="no new word"):
        inversion.save(pipe, "<x>", tmp_path / "x.safetensors")
