"""`course train inversion`: a word for something that a trained pipeline has no word for."""

from dataclasses import replace
from pathlib import Path

import torch

from course import inversion
from course.adapt.drawn import right, share
from course.data import latents, oracle
from course.errors import UsageError
from course.pipeline import SHIPPED, StableDiffusion
from course.training import diffusion
from course.training import inversion as training
from course.training.engine import processes


def train(recipe, data, out: Path, how: dict, pipe: StableDiffusion):
    """`out/model/learned_embeds.safetensors` is the word, a file of a few hundred bytes."""
    device, loss = how["engine"].device, recipe.loss
    if recipe.data.shape is None:
        raise UsageError("the recipe must say which shape the new word is for: --set data.shape=ring")
    pipe.to(device)
    for module in pipe.modules().values():
        module.requires_grad_(False)
    unnamed = replace(data, test_captions=[c.replace(recipe.data.shape, loss.word) for c in data.test_captions])
    new = inversion.begin(pipe, loss.word, loss.vectors, loss.like)
    before = right(pipe, unnamed, recipe)
    with processes(how["engine"]).main_process_first():
        mean, std = latents.cached(out / "latents", pipe.vae, data.images, device)
    batches = diffusion.latent_batches(mean, std, pipe.vae.scaling_factor, loss.draw_latents)
    ids = pipe.tokenizer([c.replace(recipe.data.shape, loss.word) for said in data.captions for c in said])
    state = training.train(new, pipe, batches, ids.view(len(data.captions), -1, pipe.config.text.length), out,
                           config=recipe.loop, loss=loss, **how)

    def finish():
        inversion.end(pipe)
        inversion.save(pipe, loss.word, out / "model" / "learned_embeds.safetensors")
        after = right(pipe, unnamed, recipe)
        table = pipe.text_encoder.text_model.embeddings.token_embedding.weight          # (V+n,D)
        known = torch.cosine_similarity(table[-loss.vectors:].mean(0)[None], table[:-loss.vectors])
        nearest = [pipe.tokenizer.decode([i]) for i in known.topk(5).indices.tolist()
                   if i < len(pipe.tokenizer)]
        found = {"word": loss.word, "stands_for": recipe.data.shape, "trained_parameters": new.new.numel(),
                 "right_before": share(before), "right_after": share(after), "prompts": len(after[1]),
                 "nearest_words": nearest, "oracle": oracle.rates(after[0], data.test_scenes)}
        said = unnamed.test_captions
        return {f"{loss.word}, before": (*before, said), f"{loss.word}, after": (*after, said)}, found
    return state, finish


def add(pipe: StableDiffusion, source: str | Path) -> str:
    """Teach `pipe` a word: from a file, the run that made it, or one that comes with the course; returns the word."""
    places = (Path(source) / "model", Path(source), SHIPPED / source)
    name = "learned_embeds.safetensors"
    return inversion.load(pipe, next((place / name for place in places if (place / name).is_file()), Path(source)))
