"""`course studio` as a student meets it: in headless Chromium, with the shipped models, on a desk and on a phone."""

import io
import json
import os
import re
import shutil
import time

import numpy as np
import pytest
from PIL import Image

from course.studio import catalogue
from tests.site.conftest import BROWSERS
from tests.studio_pages import running

pytestmark = pytest.mark.slow
PHONE = 390


@pytest.fixture(scope="module")
def address():
    with running(catalogue.collect([], [], [])) as where:
        yield where


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the packages of .[site]")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no Chromium: none of {', '.join(BROWSERS)} is on the path, and CHROMIUM does not name one")
    with playwright.sync_playwright() as started:
        root = hasattr(os, "geteuid") and os.geteuid() == 0    # root, as in a container, has no sandbox to open
        chromium = started.chromium.launch(executable_path=path, args=["--no-sandbox"] if root else [])
        yield chromium
        chromium.close()


@pytest.fixture
def studio(browser, address):
    """opened(width, scheme) -> the page. At the end nothing may have gone wrong, and nothing have come from elsewhere.

    That a mistake in the form was answered by 400 is what Chromium notes, too.
    """
    contexts, troubles = [], []

    def opened(width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: troubles.append(said.text)
                if said.type in ("error", "warning") and "status of 400" not in said.text else None)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith((address.split("?")[0], "data:", "blob:"))
                else troubles.append(f"from elsewhere: {request.url}"))
        page.goto(address)
        assert "token" not in page.url                          # nor in the history
        return page

    yield opened
    for context in contexts:
        context.close()
    assert troubles == []


def draw(page, **fields) -> None:
    for name, value in fields.items():
        page.locator(f"#{name}").fill(str(value))
    page.get_by_role("button", name="Draw", exact=True).click()


def arrived(page, count: int = 1) -> None:
    """As many pictures are there; or, at once, what was complained of."""
    page.locator(f"#pictures li:nth-child({count}) img, #form .error:not([hidden])").first.wait_for()
    assert page.locator("#form .error:visible").all_inner_texts() == []


def until(page, expression: str) -> None:
    """The page's policy forbids what Playwright's own waiting would need."""
    end = time.monotonic() + 60
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def pixels(page, selector: str) -> np.ndarray:
    """(H,W,3) of an <img> that the page shows."""
    answer = page.request.get(page.locator(selector).first.evaluate("image => image.src"))
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB")).astype(int)


def test_from_prompt_and_drawing_to_a_picture_that_knows_how_it_was_made(studio):
    page = studio()
    page.get_by_label("scenes64-heart", exact=True).check()
    page.get_by_label("Weight of scenes64-heart").fill("0.8")
    page.get_by_label("Say by a drawing where things go").check()
    page.get_by_role("radio", name="ellipse").check()
    page.locator("#canvas").evaluate("canvas => canvas.scrollIntoView({ block: 'center' })")
    box = page.locator("#canvas").bounding_box()
    page.mouse.move(box["x"] + 0.55 * box["width"], box["y"] + 0.25 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.65 * box["height"], steps=4)
    page.mouse.up()
    draw(page, prompt="a large blue circle on a white background", steps=8, seed=5)
    arrived(page)
    assert "the oracle reads: large blue circle" in page.locator("#pictures").inner_text()
    drawn = pixels(page, "#pictures img")                       # 256 x 256
    assert drawn[115, 192, 2] > drawn[115, 192, 0] + 60         # blue where the ellipse was drawn ...
    assert drawn[200, 40].min() > 200                           # ... and white where there was none
    command = page.locator("#command").inner_text()
    assert command == ('course sample "a large blue circle on a white background" --model scenes64 --sampler ddim --steps 8 '
                       "--guidance 1.5 --seed 5 --lora scenes64-heart:0.8 --control scenes64-edges=edges.png:1 --device cpu "
                       "--out sample.png")
    with page.expect_download() as waited:
        page.get_by_role("link", name="Download").click()
    assert waited.value.suggested_filename == "a-large-blue-circle-on-a-white-background-5.png"
    said = json.loads(Image.open(waited.value.path()).text["course"])
    assert said["prompts"] == ["a large blue circle on a white background"] and said["seeds"] == [5]
    assert said["command"] == command
    with page.expect_download() as waited:
        page.get_by_role("link", name="edges.png").click()
    assert Image.open(waited.value.path()).size == (64, 64)
    assert page.get_by_role("button", name="Draw", exact=True).is_enabled()


def test_progress_and_cancel(studio):
    page = studio()
    draw(page, steps=200, count=8)
    until(page, "document.getElementById('status').textContent.includes('left')")
    assert re.match(r"step \d+ of 200, about \d+ (s|min) left", page.locator("#status").inner_text())
    page.locator("#look:visible").wait_for()                    # what is there by now
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel").wait_for(state="hidden")
    assert page.locator("#said").inner_text() == "Cancelled." and page.locator("#pictures img").count() == 0
    page.get_by_label("Model").select_option("scenes64-fast")
    assert page.locator("#steps").input_value() == "2"
    draw(page, count=2, seed=1)
    arrived(page, 2)
    assert page.locator("#pictures img").count() == 2


def test_a_mistake_is_told_at_its_field(studio):
    page = studio()
    draw(page, prompt=" ", steps=500)
    page.locator("#e-steps").wait_for()
    assert page.locator("#e-steps").inner_text() == "A whole number from 1 to 200, please."
    assert page.locator("#prompt").get_attribute("aria-invalid") == "true"
    assert page.evaluate("document.activeElement.id") == "prompt"
    page.locator("#prompt").fill("a ring")
    assert page.locator("#e-prompt").is_hidden() and page.locator("#e-steps").is_visible()
    page.get_by_label("Model").select_option("scenes64-xl")
    assert page.get_by_label("scenes64-heart", exact=True).is_disabled() and page.locator("#steer").is_disabled()


def test_by_keyboard_alone_and_with_the_edges_of_a_picture(studio, tmp_path):
    page = studio()
    page.locator("#steer").focus()
    page.keyboard.press("Space")
    page.locator("#canvas").focus()
    for key in ("Space", "Shift+ArrowRight", "Shift+ArrowDown", "Space"):
        page.keyboard.press(key)
    white = ("[...document.getElementById('canvas').getContext('2d').getImageData(0, 0, 64, 64).data]"
             ".filter((value, i) => i % 4 === 0 && value > 128).length")
    assert 16 <= page.evaluate(white) <= 60
    page.get_by_role("button", name="Undo").click()
    assert page.evaluate(white) == 0
    picture = Image.new("RGB", (300, 200), "pink")
    picture.paste("green", (120, 60, 180, 140))
    picture.save(tmp_path / "box.png")
    page.locator("#file").set_input_files(tmp_path / "box.png")
    until(page, f"{white} > 40")
    (tmp_path / "no.png").write_bytes(b"no picture")
    page.locator("#file").set_input_files(tmp_path / "no.png")
    page.locator("#e-hint").wait_for()
    assert "No picture can be read" in page.locator("#e-hint").inner_text()
    page.locator("#prompt").focus()
    page.locator("#steps").fill("2")
    page.locator("#prompt").press("Enter")                      # asks for the picture
    arrived(page)
    page.get_by_role("button", name="Use its edges").press("Enter")
    until(page, f"{white} > 0")


@pytest.mark.parametrize("width", [1280, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessible_in_any_light_and_on_a_phone(studio, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the packages of .[site]").Axe()
    page = studio(width, scheme)
    page.get_by_label("scenes64-heart", exact=True).check()
    page.get_by_label("Say by a drawing where things go").check()
    for summary in page.locator("summary:visible").all():
        summary.click()
    draw(page, steps="0")                                       # a mistake, so that its message is looked at too
    page.locator("#e-steps").wait_for()
    for steer in (True, False):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        found = axe.run(page, options={"rules": {"heading-order": {"enabled": True}}}).response["violations"]
        assert not [(trouble["id"], trouble["nodes"][0]["html"][:200]) for trouble in found]
        if steer:
            page.get_by_label("Say by a drawing where things go").uncheck()
            draw(page, steps=2, count=2)
            arrived(page, 2)
            page.wait_for_timeout(400)                          # until it has appeared
