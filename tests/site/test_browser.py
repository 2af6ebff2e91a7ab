"""The site as a reader meets it: in Chromium, on a desk and on a phone, in light and dark."""

import pytest

PHONE = 390
SEEN = ("index.html", "chapters.html", "solutions/10_guidance_prompts.html", "solutions/07_reverse_process.html",
        "solutions/09_attention_text.html",
        "api/index.html", "api/attention.html", "errata.html", "tables.html",
        "README.html", "docs/adapters.html", "ko/docs/install.html", "docs/instructors.html", "search.html?q=guidance")


def test_no_page_is_wider_than_a_phone_and_nothing_goes_wrong(soups, address, tab):
    page = tab(PHONE)
    wide = {}
    for name in soups:
        page.goto(address + name, wait_until="load")
        width = page.evaluate("document.documentElement.scrollWidth")
        if width > PHONE:
            wide[name] = width
    assert not wide
    assert page.troubles == []


def test_search_finds_classifier_free_guidance(address, tab):
    page = tab()
    page.goto(address)
    page.get_by_placeholder("Search").first.fill("classifier-free guidance")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li", timeout=20_000)
    found = [a.get_attribute("href") for a in page.query_selector_all("#search-results li a")]
    assert any("10_guidance_prompts" in link for link in found)
    assert any("api/guidance" in link for link in found)
    assert page.troubles == []


def test_search_works_without_a_server(folder, tab):
    page = tab()
    page.goto((folder / "search.html").as_uri() + "?q=classifier-free+guidance")
    page.wait_for_selector("#search-results li", timeout=20_000)


def test_nothing_is_found_for_nonsense(address, tab):
    page = tab()
    page.goto(address + "search.html?q=xyzzyplugh")
    page.wait_for_selector("text=did not match any documents", timeout=20_000)
    assert page.query_selector("#search-results li") is None


def test_light_and_dark(address, tab):
    """The reader's system decides; the button changes it, and the choice stays."""
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = (tab(1280, scheme) for scheme in ("light", "dark"))
    for page in (light, dark):
        page.goto(address)
    assert light.evaluate(ground) != dark.evaluate(ground)
    chosen = light.evaluate("document.body.dataset.theme")
    light.locator(".theme-toggle:visible").first.click()
    after = light.evaluate("document.body.dataset.theme")
    light.goto(address + "errata.html")
    assert light.evaluate("document.body.dataset.theme") == after != chosen


def test_a_hint_unfolds(address, tab):
    page = tab(PHONE)
    page.goto(address + "solutions/10_guidance_prompts.html")
    hint = page.locator("details", has_text="Hint 1").first
    inside = hint.locator("p").first
    assert not inside.is_visible()
    hint.locator("summary").click()
    assert inside.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE


@pytest.mark.parametrize("language", ["", "ko/"])
def test_a_word_reached_by_the_keyboard_shows_where_the_picture_looked(address, tab, language):
    page = tab(PHONE)
    page.goto(f"{address}{language}solutions/09_attention_text.html")
    words = page.locator(".attention-hover span")
    maps = words.locator("img")
    assert words.count() == maps.count() == 6 and not any(maps.nth(i).is_visible() for i in range(6))
    words.first.focus()
    assert maps.first.is_visible() and not maps.nth(1).is_visible()
    page.keyboard.press("Tab")
    assert maps.nth(1).is_visible() and not maps.first.is_visible()
    # in one call, since the page is still scrolling: the map lies on the picture
    places = page.evaluate("[...document.querySelectorAll('.attention-hover img')].map(i => i.getBoundingClientRect().toJSON())")
    assert len(places) == 7 and all(place == places[-1] for place in places) and page.troubles == []


def test_formulas_are_drawn_with_the_font_of_the_site(address, tab):
    page = tab()
    page.goto(address + "solutions/10_guidance_prompts.html")
    page.evaluate("document.fonts.ready")
    loaded = "[...document.fonts].some(f => f.family.includes('Course Math') && f.status === 'loaded')"
    page.wait_for_function(loaded, timeout=10_000)
    assert page.evaluate("getComputedStyle(document.querySelector('math')).fontFamily").startswith('"Course Math"')


@pytest.mark.parametrize("width", [1280, PHONE])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_accessibility(address, tab, scheme, width):
    """axe-core's rules of WCAG 2 A and AA: contrast, alt texts, names of buttons and links, order of headings."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the packages of .[site]").Axe()
    rules = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21aa"]},
             "rules": {"heading-order": {"enabled": True}}}
    found = {}
    for name in SEEN:
        page = tab(width, scheme)
        page.goto(address + name)
        for trouble in axe.run(page, options=rules).response["violations"]:
            found.setdefault(trouble["id"], []).append((name, len(trouble["nodes"]), trouble["nodes"][0]["html"][:160]))
        page.context.close()
    assert not found
