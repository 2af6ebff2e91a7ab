import pytest
import torch

from course.errors import CheckpointError, UsageError
from course.tokenizer import Tokenizer, split_words


def test_bpe_by_hand():
    """The classic example: the most frequent pair is joined first."""
    t = Tokenizer.train(["low low low lower"], num_merges=3, length=8)
    assert t.merges[:2] == [("l", "o"), ("lo", "w</w>")]
    assert [t.symbols[i] for i in t.encode("low lower")] == ["low</w>", "lo", "w", "er</w>"]


def test_layout_of_a_row():
    t = Tokenizer([], length=6)
    row = t("ab")[0]
    assert row.tolist() == [t.start_id, *t.encode("ab"), t.end_id, t.end_id, t.end_id]
    assert row.dtype == torch.long and t(["a", "b"]).shape == (2, 6)
    assert t("abcdefgh")[0].tolist() == [t.start_id, *t.encode("abcd")[:0], *t.encode("abcdefgh")[:4], t.end_id]
    assert t.cut_off("abcdefgh") == "efgh" and t.cut_off("abcd") == ""


@pytest.mark.parametrize("text", ["", "   ", "한국어 텍스트", "émigré ÀÉ", "😀👩‍🚀", "a\tb\nc", "it's 2026!",
                                  "x" * 10_000, "\x00\x7f"])
def test_no_text_is_out_of_vocabulary(text):
    t = Tokenizer.train(["a small red circle"], num_merges=20, length=12)
    assert t(text).shape == (1, 12)
    squeezed = "".join(split_words(text))
    assert t.decode(t.encode(text)).replace(" ", "") == squeezed


def test_words_are_split_as_clip_splits_them():
    assert split_words("It's 42 dogs!! don't") == ["it", "'s", "4", "2", "dogs", "!!", "don", "'t"]


def test_against_clip(test_data, tmp_path):
    """With CLIP's own merges, the ids that `transformers` gives."""
    transformers = pytest.importorskip("transformers")
    import gzip
    import json
    lines = gzip.open(test_data / "bpe_simple_vocab_16e6.txt.gz").read().decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1: 49152 - 256 - 2 + 1]]
    ours = Tokenizer(merges)
    (tmp_path / "vocab.json").write_text(json.dumps(ours.ids))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges))
    theirs = transformers.CLIPTokenizer.from_pretrained(str(tmp_path))
    assert len(ours) == 49_408 and ours.start_id == 49_406 and ours.end_id == 49_407
    texts = ["a small red circle left of a large blue square", "It's a DOG!", "  spaces   everywhere ", "naïve café 한국어 12345",
             "golden hour, award-winning photo (8k)", "x" * 100, ""]
    expected = theirs(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
    assert ours(texts).tolist() == expected


PIECES = [
    "a small red circle", "It's", "we'LL", "don't", "한국어", "텍스트를", "안녕하세요", "😀", "👩‍🚀", "🇰🇷",
    "def f(x): return x**2",
    "{'a': 1}", "<b>", "C++", "\t", "\n\n", "   ", "\u00a0", "\u3000", "\x00", "\x1f", "\x7f", "\u200b", "1234567890", "3.14",
    "½", "Ⅷ", "٣", "naïve", "ÀÉÎ", "e\u0301", "ß", "İ", "ﬁ", "你好", "こんにちは", "привет", "שלום", "नमस्ते", "!!!???", "--", "…",
    "—", "«quoted»", "$100%", "@user", "#tag", "http://x.y/z?a=b", "'s", "''", "\"", "\\", "<|endoftext|>", "<|startoftext|>",
    "_under_score_", "CamelCase", "ALLCAPS", "x" * 30, "\ud7a3", "𝔘𝔫𝔦", "ａｂｃ"]


def test_ten_thousand_strings_against_clip(test_data):
    """Everything that people and programs type, in random mixtures, cut to 77 tokens; both ways of padding."""
    import random
    import unicodedata
    transformers = pytest.importorskip("transformers")
    ours = Tokenizer.from_released(test_data / "bpe_simple_vocab_16e6.txt.gz")
    draw = random.Random(0)
    texts = ["", " ", "x" * 10_000, "가" * 3000, *PIECES]
    while len(texts) < 10_000:
        some = draw.choices(PIECES, k=draw.randint(1, 12))
        if draw.random() < 0.3:       # and any characters that this Python's Unicode knows; theirs may be of another year
            some += [c for c in (chr(draw.randrange(1, 0x2FFFF)) for _ in range(draw.randint(1, 8)))
                     if unicodedata.category(c) not in ("Cn", "Cs", "Co")]
        texts.append(draw.choice(["", " "]).join(some))
    for pad in ("<|endoftext|>", "!"):
        theirs = transformers.CLIPTokenizer(vocab=ours.ids, merges=ours.merges, pad_token=pad, model_max_length=77)
        ours.fill_with(pad)
        expected = theirs(texts, padding="max_length", truncation=True, max_length=77)["input_ids"]
        wrong = [t for t, mine, e in zip(texts, ours(texts).tolist(), expected, strict=True) if mine != e]
        assert wrong == []


def test_released_folders(tmp_path):
    import json
    t = Tokenizer.train(["a large green ring"], num_merges=10, length=9)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in t.merges))
    (tmp_path / "vocab.json").write_text(json.dumps(t.ids))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "!"}, "model_max_length": 9}))
    back = Tokenizer.from_released(tmp_path)
    assert back.ids == t.ids and back.pad == "!" and back.length == 9
    (tmp_path / "vocab.json").write_text(json.dumps(t.ids | {"a": 400}))
    with pytest.raises(CheckpointError, match="'a' is 400"):
        Tokenizer.from_released(tmp_path)
    (tmp_path / "merges.txt").write_text("#version\none two three\n")
    with pytest.raises(CheckpointError, match="list of merges"):
        Tokenizer.from_released(tmp_path)
    with pytest.raises(CheckpointError, match="no CLIP tokenizer"):
        Tokenizer.from_released(tmp_path / "nowhere")


def test_save_and_load(tmp_path):
    t = Tokenizer.train(["a large green ring"], num_merges=10, length=9)
    t.save(tmp_path / "t.json")
    assert Tokenizer.load(tmp_path / "t.json")("a ring").equal(t("a ring"))
    (tmp_path / "t.json").write_text('{"merges": 3')
    with pytest.raises(CheckpointError, match="t.json"):
        Tokenizer.load(tmp_path / "t.json")


def test_misuse():
    with pytest.raises(UsageError, match="must be a string, got int"):
        Tokenizer([]).encode(7)
    with pytest.raises(UsageError, match="length"):
        Tokenizer([], length=1)
    with pytest.raises(UsageError, match="padding"):
        Tokenizer([], pad="nope!")
