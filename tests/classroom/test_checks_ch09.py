"""The course's own answers of chapter 09 equal the library's, and the chapter's parts draw the library's picture."""

import torch
import torch.nn.functional as F

from course import attention, parts, text, tokenizer
from course.classroom import checks, collect
from course.classroom.checks import ch09
from course.classroom.checks.ch09 import answers
from course.classroom.mutants import own
from course.classroom.release import ROOT
from course.data import Scenes
from course.pipeline import StableDiffusion


def test_attention_and_its_block():
    q, k, v = torch.randn(3, 2, 4, 5, 8)
    for causal in (False, True):
        torch.testing.assert_close(answers.attention_weights(q, k, causal) @ v, attention.attend(q, k, v, False, causal))
    pairs = [(answers.CrossAttention(16, 12, 2, 8), attention.CrossAttention(16, 12, 2, 8)),
             (answers.BasicTransformerBlock(16, 12, 2, 8), attention.BasicTransformerBlock(16, 12, 2, 8))]
    for mine, library in pairs:
        mine.load_state_dict(library.state_dict())
        x, context = torch.randn(2, 5, 16), torch.randn(2, 3, 12)
        torch.testing.assert_close(mine(x, context), library(x, context))


def test_merges_and_words():
    lines = Scenes(64).captions(range(60))
    words = {}
    for word in (w for line in lines for w in tokenizer.split_words(line)):
        spelt = (*word[:-1], word[-1] + tokenizer.END_OF_WORD)
        words[spelt] = words.get(spelt, 0) + 1
    library = tokenizer.Tokenizer.train(lines, 50)
    assert answers.learn_merges(words, 50) == library.merges
    for word in ("background", "turquoise"):
        pieces = answers.encode_word([*word[:-1], word[-1] + tokenizer.END_OF_WORD], library.rank)
        assert [library.ids[p] for p in pieces] == library.encode(word)


def test_text_and_its_pooled_vector():
    net = text.TextEncoder(text.TextConfig(vocab_size=40, length=12, width=16, layers=2, heads=2, projection=8, eos_id=5))
    ids = torch.randint(6, 40, (3, 10))
    ids[torch.arange(3), torch.tensor([4, 9, 0])] = 5
    hidden = answers.encode_text(net.text_model, ids)
    torch.testing.assert_close(hidden, net(ids))
    torch.testing.assert_close(answers.pooled(hidden, ids, 5, net.text_projection.weight), F.normalize(net.pooled(ids), dim=-1))


def test_swapped_parts_do_not_reach_the_checks():
    class Broken:
        def __init__(self, *arguments, **options):
            raise RuntimeError
    names = [name for name in parts.PARTS if name.startswith(("attention.", "tokenizer.", "text."))]
    with parts.swapped(dict.fromkeys(names, Broken)):
        assert all(checks.find(e.id).run(own(e.id)).passed for e in ch09.EXERCISES)


def test_the_parts_of_the_chapter_draw_the_librarys_picture():
    found = collect.StudentParts()
    collect._read(ROOT / "solutions" / "09_attention_text.ipynb", found)
    assert sorted(found) == ["attention.BasicTransformerBlock", "attention.CrossAttention", "attention.FeedForward",
                             "attention.attend", "text.TextEncoder", "tokenizer.Tokenizer"]
    how = dict(prompt="a small red ring left of a large blue square", steps=2, seed=3)
    expected = StableDiffusion.load("scenes64").latents(**how)
    with parts.swapped(found):
        pipe = StableDiffusion.load("scenes64")
    assert type(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2).__name__ == "CrossAttention"
    assert type(pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2).__module__.endswith("of_a_student")
    torch.testing.assert_close(pipe.latents(**how), expected, rtol=1e-3, atol=1e-4)
