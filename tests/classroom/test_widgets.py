"""Alive for a person, a figure for a machine: what the chapters' widgets show, and what their knobs do."""

import base64
import contextlib
import html.parser
import io
import os
import re
import shutil

import nbformat
import pytest
import torch
from PIL import Image

from course import classroom
from course.classroom import release, widgets
from course.errors import UsageError


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)


@pytest.fixture
def looked_on(monkeypatch):
    """A live session; returns what is displayed or moved."""
    import IPython.display
    import ipywidgets
    shown = []
    monkeypatch.setenv("JPY_SESSION_NAME", "somewhere.ipynb")
    monkeypatch.setattr(IPython.display, "display", shown.append)
    monkeypatch.setattr(ipywidgets, "interact", lambda draw, **moved: shown.append((draw, moved)))
    return shown


def test_a_prompt_box_alone_draws_its_examples_at_once():
    drawn = []
    assert widgets.prompt_box(drawn.append, ("a ring", "a star")) is None
    assert drawn == [["a ring", "a star"]]


def test_a_prompt_box_draws_what_is_written_once(looked_on, capfd):
    drawn = []
    widgets.prompt_box(drawn.append, ["a ring", "a star"])
    [box] = looked_on
    (field, button), place = box.children[0].children, box.children[1]
    assert drawn == [["a ring", "a star"]] and field.options == ("a ring", "a star") and not button.disabled
    field.value = "a cross"                                    # Enter, or the field is left
    assert drawn[1:] == [["a cross"]]
    button.click()                                             # to click the button the field was left: no second picture
    assert drawn[1:] == [["a cross"]]
    field.value = "a star"
    assert drawn[2:] == [["a star"]] and type(place).__name__ == "Output"
    assert capfd.readouterr().err == ""


def test_the_button_draws_the_empty_prompt_and_comes_back_after_an_error(looked_on):
    drawn = []

    def draw(prompts):
        drawn.append(prompts)
        if prompts == ["bad"]:
            raise ValueError("no")
        button = looked_on[0].children[0].children[1] if looked_on else None
        assert button is None or len(drawn) == 1 or button.disabled                     # while it draws

    widgets.prompt_box(draw, ["a ring"])
    field, button = looked_on[0].children[0].children
    button.click()
    assert drawn[1:] == [[""]] and not button.disabled
    with pytest.raises(ValueError):                            # in a notebook the Output shows it
        field.value = "bad"
    assert not button.disabled


@pytest.fixture
def noises():
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_mixed_alone_are_five_places_on_the_arc(noises):
    drawn = []
    noises /= noises.flatten(1).norm(dim=1)[:, None, None, None]
    widgets.latent_mixer(noises[0], noises[1], lambda z, titles: drawn.append((z, titles)))
    [(z, titles)] = drawn
    assert z.shape == (5, 4, 8, 8) and titles == ["u = 0", "u = 0.25", "u = 0.5", "u = 0.75", "u = 1"]
    torch.testing.assert_close(z[[0, 4]], noises[:2])
    torch.testing.assert_close(z.flatten(1).norm(dim=1), torch.ones(5))                 # all on the sphere,
    cosines = torch.nn.functional.cosine_similarity(z.flatten(1), z[0].flatten()[None])
    angles = cosines.clamp(-1, 1).acos().diff()
    torch.testing.assert_close(angles, angles.mean().expand(4), rtol=0.01, atol=1e-3)   # in equal steps


def test_with_a_third_latent_the_way_ends_at_a_minus_b_plus_c(noises):
    drawn = []
    a, b, c = noises
    widgets.latent_mixer(a, b, lambda z, titles: drawn.append(z), c, places=3)
    torch.testing.assert_close(drawn[0], torch.stack([a, a + 0.5 * (c - b), a - b + c]))


def test_latents_of_different_shapes_are_refused(noises):
    for given in ((noises[0], noises[1, :2], print), (noises, noises, print), (*noises[:2], print, noises[2, :, :4])):
        with pytest.raises(UsageError, match=r"of one shape \(C,h,w\)"):
            widgets.latent_mixer(*given)


def test_the_mixers_slider_draws_one_place(looked_on, noises):
    drawn = []
    a, b, c = noises
    widgets.latent_mixer(a, b, lambda z, titles: drawn.append((z, titles)), c)
    [(draw, moved)] = looked_on
    knob = moved["u"]
    assert (knob.min, knob.max, knob.value, knob.continuous_update) == (0, 1, 0.5, False) and drawn == []
    draw(0.25)
    torch.testing.assert_close(drawn[0][0], (a + 0.25 * (c - b))[None])
    assert drawn[0][1] == ["u = 0.25"]


# ---- attention

PROMPT, WORDS = "a blue square left of a blue ring, on <white>", ["blue square", "blue", "ring"]


@pytest.fixture
def seen():
    """A picture of 64 x 64 and the maps of three words: each looks at a corner of its own, at most 20, 40, 60 %."""
    picture, maps = Image.new("RGB", (64, 64), (0, 90, 200)), torch.zeros(3, 64, 64)
    for k in range(3):
        maps[k, 32 * (k // 2):32 * (k // 2) + 32, 32 * (k % 2):32 * (k % 2) + 32] = 0.2 * (k + 1)
    return picture, maps


class Page(html.parser.HTMLParser):
    """Tags with their attributes, in order, and what lies open at the end."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes), list(self.open)))
        if tag not in ("img", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def pictures_of(page):
    found = []
    for tag, attributes, inside in page.tags:
        if tag == "img":
            kind, data = re.fullmatch(r"data:(image/\w+);base64,(.+)", attributes["src"]).groups()
            found.append((attributes, inside, kind, Image.open(io.BytesIO(base64.b64decode(data)))))
    return found


def test_the_prompt_is_whole_and_each_word_holds_its_map(seen):
    page = Page(widgets.hover_page(*seen, WORDS, PROMPT))
    assert page.open == [] and not {tag for tag, *_ in page.tags} & {"script", "link", "iframe", "object"}
    assert page.text == "a blue square 20% left of a blue 40% ring 60%, on <white>"
    *maps, base = pictures_of(page)
    assert len(maps) == 3 and "blue square" in base[0]["alt"] and "span" not in base[1]
    assert all(attributes["alt"] == "" and inside[-1] == "span" and kind == "image/webp" for attributes, inside, kind, _ in maps)
    for k, (*_, picture) in enumerate(maps):                   # red where the word was looked at, grey elsewhere
        for corner in range(3):
            r, g, b = picture.convert("RGB").getpixel((32 * (corner % 2) + 16, 32 * (corner // 2) + 16))
            assert (r - b > 60) == (corner == k) and (corner == k or abs(r - b) < 25), (k, corner, (r, g, b))


def test_every_word_is_reached_by_tab_and_shows_its_map_by_css_alone(seen):
    text = widgets.hover_page(*seen, WORDS, PROMPT)
    assert all(attributes.get("tabindex") == "0" for tag, attributes, _ in Page(text).tags if tag == "span")
    assert "span:focus img" in text and "span:hover img" in text and not re.search(r"\son\w+=|javascript:|https?:", text)


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (512, 320)])
def test_a_figure_has_25_kb_at_most(size):
    """Six words, and a picture with more in it than the course's: noise, smooth enough for a photograph."""
    noise = torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0))
    pixels = (255 * torch.nn.functional.interpolate(noise[None], (size[1], size[0]), mode="bicubic")[0].clamp(0, 1)).byte()
    picture, maps = Image.fromarray(pixels.permute(1, 2, 0).numpy()), torch.rand(6, 16, 16)
    maps = torch.nn.functional.interpolate(maps[None], (size[1], size[0]), mode="bilinear")[0]
    text = widgets.hover_page(picture, maps, list("bcdefg"), "b c d e f g")
    assert len(text) <= 25 * 1024
    assert all(max(p.size) <= widgets.SIDE and p.size[0] * size[1] == p.size[1] * size[0]
               for *_, p in pictures_of(Page(text)))


def test_what_does_not_fit_is_refused(seen):
    picture, maps = seen
    with pytest.raises(UsageError, match="3 heat maps for 2 words"):
        widgets.hover_page(picture, maps, WORDS[:2], PROMPT)
    with pytest.raises(UsageError, match="'rin': not in the prompt"):
        widgets.hover_page(picture, maps[:1], ["rin"], PROMPT)


def test_a_map_that_is_even_everywhere_and_a_word_said_twice(seen):
    page = Page(widgets.hover_page(seen[0], torch.full((1, 64, 64), 0.5), ["a"], "a ring and a star"))
    assert page.text == "a 50% ring and a 50% star" and len(pictures_of(page)) == 3


def test_it_is_displayed_the_same_whoever_looks_on(seen, monkeypatch, capfd):
    import IPython.display
    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda page: shown.append(page.data))
    classroom.attention_hover(*seen, WORDS, PROMPT)
    monkeypatch.setenv("JPY_SESSION_NAME", "somewhere.ipynb")
    classroom.attention_hover(*seen, WORDS, PROMPT)
    assert shown == [widgets.hover_page(*seen, WORDS, PROMPT)] * 2 and capfd.readouterr() == ("", "")


def test_in_a_browser_a_word_with_the_focus_shows_its_map(seen, tmp_path):
    sync = pytest.importorskip("playwright.sync_api", reason="needs the packages of .[site]")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium on the path")
    page_file = tmp_path / "page.html"
    page_file.write_text(f"<!doctype html><meta charset=utf-8><body>{widgets.hover_page(*seen, WORDS, PROMPT)}", "utf-8")
    with sync.sync_playwright() as started, contextlib.closing(started.chromium.launch(
            executable_path=path, args=["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else [])) as browser:
        page = browser.new_page(viewport={"width": 390, "height": 700}, has_touch=True)
        page.goto(page_file.as_uri())
        visible = "[...document.querySelectorAll('span img')].map(i => getComputedStyle(i).visibility == 'visible')"
        assert page.evaluate(visible) == [False] * 3
        for k in range(3):
            page.keyboard.press("Tab")
            assert page.evaluate(visible) == [k == 0, k == 1, k == 2]
        page.locator("span").nth(1).tap()
        assert page.evaluate(visible) == [False, True, False]
        boxes = page.evaluate("[...document.images].map(i => i.getBoundingClientRect()).map(r => [r.x, r.y, r.width, r.height])")
        assert all(box == boxes[0] and box[2] == box[3] for box in boxes)              # they lie on each other
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_figure_of_chapter_09_is_what_would_be_made_today():
    """Its rules are copied into the executed notebook: a change here asks for a new build there."""
    cells = nbformat.read(release.ROOT / "solutions" / "09_attention_text.ipynb", as_version=4).cells
    found = [output.data["text/html"] for cell in cells for output in cell.get("outputs", [])
             if "attention-hover" in output.get("data", {}).get("text/html", "")]
    assert len(found) == 1 and widgets.STYLE in found[0] and len(found[0]) <= 25 * 1024
    assert len(pictures_of(Page(found[0]))) == 7
