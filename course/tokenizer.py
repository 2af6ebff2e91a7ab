"""Text -> integers by byte-pair encoding, as CLIP does it (Sennrich et al. 2016; Radford et al. 2021).

A word starts as its bytes. The pair of neighbours that is most frequent in the training text becomes one new symbol, and
again, and again: common words end as one token, rare ones as a few pieces, and no text whatsoever is out of vocabulary.
"""

import gzip
import json
import unicodedata
from collections import Counter
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from course.errors import CheckpointError, UsageError

START, END = "<|startoftext|>", "<|endoftext|>"
SUFFIXES = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
END_OF_WORD = "</w>"
CLIP_MERGES = 48_894                      # 49,408 symbols less twice 256 bytes, START and END


class Tokenizer:
    """Byte-pair encoding with a fixed context length.

    Args:
        merges: pairs of symbols, most frequent first.  length: N, tokens a text, START and END included.
        pad: what fills the rest: END as in Stable Diffusion 1.x, or another token ("!" in SDXL's second tokenizer).

    The vocabulary is CLIP's: 256 bytes, the same 256 at the end of a word, one symbol a merge, START, END.
    """

    def __init__(self, merges: list[tuple[str, str]], length: int = 77, pad: str = END):
        if length < 2:
            raise UsageError(f"length must leave room for the start and end tokens, got {length}")
        self.merges, self.length = [tuple(m) for m in merges], length
        alphabet = list(byte_alphabet().values())
        symbols = alphabet + [a + END_OF_WORD for a in alphabet] + ["".join(m) for m in self.merges] + [START, END]
        self.ids = {symbol: i for i, symbol in enumerate(symbols)}
        self.symbols = symbols
        self.rank = {pair: i for i, pair in enumerate(self.merges)}
        self.start_id, self.end_id = self.ids[START], self.ids[END]
        self.added: dict[str, tuple[int, ...]] = {}            # see `add`
        self.fill_with(pad)

    def fill_with(self, pad: str) -> None:
        """Pad with another token from now on. Where a text has it, or START or END, it is that token, too, as in CLIP."""
        if pad not in self.ids:
            raise UsageError(f"the padding token {pad!r} is not in the vocabulary")
        self.pad, self.pad_id = pad, self.ids[pad]
        self._forget()

    def add(self, word: str, ids: list[int]) -> None:
        """A new word, which stands for itself wherever it occurs, as these tokens: see `inversion`."""
        if not word or word != word.lower() or word.split() != [word]:
            raise UsageError(f"a new word must be lower case and without spaces, such as <thing>, got {word!r}")
        if word in self.special:
            raise UsageError(f"there is a word {word!r} already")
        self.added[word] = tuple(ids)
        self._forget()

    def _forget(self) -> None:
        """What was cached of words may be wrong now."""
        self.special = tuple(dict.fromkeys((START, END, self.pad, *self.added)))
        self._word = lru_cache(maxsize=65_536)(self._merge_word)

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without START, END and padding. Raises UsageError where it is not a string."""
        if not isinstance(text, str):
            raise UsageError(f"a prompt must be a string, got {type(text).__name__}: {text!r}")
        return [i for word in split_words(text, self.special) for i in self._word(word)]

    def decode(self, ids: list[int]) -> str:
        """The text of `ids`; START, END and whatever they frame in padding are dropped."""
        new = {own[0]: f"{word}{END_OF_WORD}" for word, own in self.added.items()}
        new |= {i: "" for own in self.added.values() for i in own[1:]}
        symbols = [new[i] if i in new else self.symbols[i] for i in ids if i not in (self.start_id, self.end_id)]
        back = {symbol: byte for byte, symbol in byte_alphabet().items()}
        text = "".join(symbols).replace(END_OF_WORD, " ")
        return bytes(back.get(c, ord(" ")) for c in text).decode("utf-8", errors="replace").strip()

    def __call__(self, texts: str | list[str]) -> Tensor:
        """START, tokens, END, padding; list of B strings -> int64 (B,N). Longer texts are cut: see `cut_off`."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        rows = torch.full((len(texts), self.length), self.pad_id, dtype=torch.long)     # (B,N)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start_id, *self.encode(text)[: self.length - 2], self.end_id]
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def cut_off(self, text: str) -> str:
        """The end of `text` that does not fit into `length` tokens; empty where all of it does."""
        return self.decode(self.encode(text)[self.length - 2:])

    def _merge_word(self, word: str) -> tuple[int, ...]:
        if word in self.special:
            return self.added.get(word) or (self.ids[word],)
        alphabet = byte_alphabet()
        pieces = [alphabet[b] for b in word.encode("utf-8")]
        pieces[-1] += END_OF_WORD
        while len(pieces) > 1:
            best = min(zip(pieces, pieces[1:], strict=False), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            pieces = merge_pair(pieces, best)
        return tuple(self.ids[p] for p in pieces)

    @classmethod
    def train(cls, texts: list[str], num_merges: int = 400, length: int = 77) -> "Tokenizer":
        """Learn the merges from `texts`: count neighbouring pairs, join the most frequent, repeat (ties: alphabetical)."""
        alphabet = byte_alphabet()
        counts = Counter(word for text in texts for word in split_words(text))
        words = {}
        for word in counts:
            pieces = [alphabet[b] for b in word.encode("utf-8")]
            pieces[-1] += END_OF_WORD
            words[word] = pieces
        merges = []
        for _ in range(num_merges):
            pairs = Counter()
            for word, pieces in words.items():
                for pair in zip(pieces, pieces[1:], strict=False):
                    pairs[pair] += counts[word]
            if not pairs:                                                               # every word is one token by now
                break
            best = min(pairs, key=lambda pair: (-pairs[pair], pair))
            merges.append(best)
            words = {word: merge_pair(pieces, best) for word, pieces in words.items()}
        return cls(merges, length=length)

    @classmethod
    def from_released(cls, source: str | Path, length: int = 77) -> "Tokenizer":
        """CLIP's tokenizer, from a released `tokenizer/` folder, or from its merges alone (.txt, or OpenAI's .txt.gz).

        The padding token is what the folder says: END for Stable Diffusion 1.x, "!" for SDXL's second tokenizer.
        """
        source, pad, vocabulary = Path(source), END, None
        merges = source / "merges.txt" if source.is_dir() else source
        try:
            if source.is_dir():
                said = json.loads((source / "tokenizer_config.json").read_text(encoding="utf-8"))
                pad, length = said.get("pad_token", END), said.get("model_max_length", length)
                pad = pad["content"] if isinstance(pad, dict) else pad
                vocabulary = json.loads((source / "vocab.json").read_text(encoding="utf-8"))
            raw = gzip.open(merges).read() if merges.suffix == ".gz" else merges.read_bytes()
            lines = raw.decode("utf-8").split("\n")[1:]         # the first line says "#version"
        except (OSError, ValueError, EOFError) as error:
            raise CheckpointError(f"no CLIP tokenizer in {source}: {error}") from None
        # OpenAI's file goes on behind CLIP's 48,894 merges with pairs that CLIP does not use
        pairs = [tuple(line.split()) for line in lines[:CLIP_MERGES] if line.strip()]
        if any(len(pair) != 2 for pair in pairs) or not pairs:
            raise CheckpointError(f"{merges} is no list of merges: expected a line '#version' and then two symbols a line")
        found = cls(pairs, length=length, pad=pad)
        if vocabulary is not None and vocabulary != found.ids:
            other = next((s for s in found.ids if vocabulary.get(s) != found.ids[s]), None)
            raise CheckpointError(f"{source / 'vocab.json'} is not the vocabulary of its merges: {len(vocabulary)} symbols "
                                  f"for {len(found.ids)}; {other!r} is {vocabulary.get(other)}, not {found.ids.get(other)}")
        return found

    def save(self, path: str | Path) -> None:
        state = {"length": self.length, "pad": self.pad, "merges": [" ".join(m) for m in self.merges]}
        if self.added:
            state["added"] = self.added
        Path(path).write_text(json.dumps(state, ensure_ascii=False, indent=0), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        try:
            state = json.loads(Path(path).read_text(encoding="utf-8"))
            found = cls([tuple(m.split(" ")) for m in state["merges"]], state["length"], state["pad"])
            for word, ids in state.get("added", {}).items():
                found.add(word, ids)
            return found
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is no tokenizer file: {error}") from error


def merge_pair(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    """Join every occurrence of `pair`, left to right."""
    merged, i = [], 0
    while i < len(pieces):
        if i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == pair:
            merged.append(pieces[i] + pieces[i + 1])
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return merged


def split_words(text: str, special: tuple[str, ...] = (START, END)) -> list[str]:
    """Lower case; then runs of letters, single digits, runs of other signs; the suffixes 's, 't, 're ... by themselves.

    special: tokens that stand for themselves wherever they occur.
    """
    text = unicodedata.normalize("NFC", text).lower()
    words, i = [], 0
    while i < len(text):
        fixed = next((s for s in (*special, *SUFFIXES) if text.startswith(s, i)), None)
        if fixed:
            words.append(fixed)
            i += len(fixed)
            continue
        kind, j = _kind(text[i]), i + 1
        if kind != "number":                                                            # digits never join
            while j < len(text) and _kind(text[j]) == kind and not text.startswith(special, j):
                j += 1
        if kind != "space":
            words.append(text[i:j])
        i = j
    return words


def _kind(char: str) -> str:
    if char.isspace() and not "\x1c" <= char <= "\x1f":      # separators to Python, not to Unicode
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(char)[0], "sign")


@lru_cache
def byte_alphabet() -> dict[int, str]:
    """A printable character for each of the 256 bytes, so that merges can be stored as text (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    rest = [b for b in range(256) if b not in table]
    return table | {b: chr(256 + i) for i, b in enumerate(rest)}
