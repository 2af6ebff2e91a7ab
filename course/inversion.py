"""Textual inversion: one new word, one new vector, and not a weight of the model changed (Gal et al. 2022, section 4).

    v* = argmin_v  E || eps - eps_theta(z_t, t, c_theta(text with v in place of the word)) ||^2            their eq. 2

The smallest adapter of all. It can only find what the model can already draw and has no word for: a vector is a place in the
space of words, and behind it stands the same network.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from course import files
from course.errors import CheckpointError, UsageError


class NewWord(nn.Module):
    """The table of words with a few rows more, which alone are trained; stands in for an nn.Embedding.

    forward(ids (...)) -> (...,D).  `new` is (n,D): a word may be worth several vectors.
    """

    def __init__(self, table: nn.Embedding, new: Tensor):
        super().__init__()
        self.old = table.weight.detach()                       # (V,D); no parameter, so that it is neither trained nor saved
        self.new = nn.Parameter(new.detach().clone())          # (n,D)

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.embedding(ids, torch.cat([self.old.to(self.new), self.new]))


def begin(pipe, word: str, count: int = 1, like: str | None = None) -> NewWord:
    """Teach `pipe` a word that means nothing yet, or what `like` means; returns what is to be trained.

    Raises UsageError for a pipeline with two text encoders, a `like` of no tokens, a word that is taken, and a count below 1.
    """
    if pipe.text_encoder_2 is not None:
        raise UsageError("textual inversion here is for models with one text encoder")
    if count < 1:
        raise UsageError(f"a word needs at least one vector, got {count}")
    table = _table(pipe)
    tokens = pipe.tokenizer.encode(like) if like is not None else []
    if like is not None and not tokens:
        raise UsageError(f"the word to begin with, {like!r}, has no tokens")
    vectors = table.weight.detach()
    start = vectors[tokens].mean(0) if tokens else vectors.mean(0)                      # (D,)
    return _put(pipe, word, start.expand(count, -1))


def end(pipe) -> None:
    """Make the new rows part of the table, as if they had always been there."""
    embeddings = pipe.text_encoder.text_model.embeddings
    new = embeddings.token_embedding
    weight = torch.cat([new.old.to(new.new), new.new.detach()])                         # (V+n,D)
    embeddings.token_embedding = nn.Embedding(*weight.shape, _weight=weight).requires_grad_(False)
    pipe.grow_vocabulary(len(weight))


def save(pipe, word: str, path: str | Path) -> None:
    """Write the word's vectors (n,D) in the form that diffusers reads: {word: vectors}."""
    if word not in pipe.tokenizer.added:
        raise UsageError(f"{word!r} is no new word of this pipeline")
    files.save_tensors(path, {word: _table(pipe).weight[list(pipe.tokenizer.added[word])]}, {"word": word})


def load(pipe, path: str | Path, word: str | None = None) -> str:
    """Teach `pipe` a word from a file, of this course, diffusers ({word: vectors}) or others ({"emb_params": vectors}).

    Returns the word. Raises CheckpointError where the file was made for another text encoder.
    """
    tensors, _ = files.load_tensors(Path(path))
    width = pipe.text_encoder.config.width
    if len(tensors) != 1:
        raise CheckpointError(f"{path} is no textual inversion: expected one tensor in it, got {', '.join(tensors) or 'none'}")
    (name, vectors), = tensors.items()
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise CheckpointError(f"{path} was made for another text encoder: expected vectors of {width} numbers, "
                              f"got {tuple(vectors.shape)}")
    word = word or (f"<{Path(path).stem.lower()}>" if name == "emb_params" else name)
    _put(pipe, word, vectors)
    end(pipe)
    return word


def _table(pipe) -> nn.Embedding:
    return pipe.text_encoder.text_model.embeddings.token_embedding


def _put(pipe, word: str, vectors: Tensor) -> NewWord:
    table = _table(pipe)
    pipe.tokenizer.add(word, list(range(len(table.weight), len(table.weight) + len(vectors))))
    new = NewWord(table, vectors.to(table.weight))
    pipe.text_encoder.text_model.embeddings.token_embedding = new
    return new
