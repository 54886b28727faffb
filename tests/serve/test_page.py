"""The page in a real Chromium, end to end."""

from pathlib import Path

import pytest
from serve_parts import BASE, PRESETS, PROBLEM, adapters, loop_of, served  # noqa: F401 - a fixture

CHROMIUM = Path("/usr/bin/chromium")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"there is no {CHROMIUM}"),
    pytest.mark.slow,  # a browser takes seconds to start
]


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(adapters):
    loop = loop_of(adapters, *PRESETS[:4])
    with served(loop, "sk-1") as url:
        yield loop, url


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_base_and_three_adapters_side_by_side(browser, server, width, scheme):
    loop, url = server
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked, wrong = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(error))
    page.goto(url)
    page.get_by_text("the API key is missing or wrong").wait_for()
    page.get_by_label("API key").fill("sk-1")
    page.keyboard.press("Tab")
    page.locator("#models input").nth(4).wait_for()
    chosen = page.locator("#models input:checked")
    assert [box.get_attribute("value") for box in chosen.all()] == [BASE, *PRESETS[:3]]
    assert page.locator("#models input").nth(4).is_disabled()  # a fourth adapter
    page.get_by_label("Prompt", exact=True).fill(PROBLEM)
    page.get_by_label("Tokens at most").fill("12")
    page.keyboard.press("Control+Enter")
    page.locator("article[data-done=yes]").nth(3).wait_for()
    texts = page.locator("article pre").all_inner_texts()
    expected = []
    for name in ("", *PRESETS[:3]):
        ids = loop.prompt(name, [{"role": "user", "content": PROBLEM}])
        from serve.questions import Question

        expected.append("".join(piece.text for piece in loop.pieces(Question(ids, 12, name))))
    assert [" ".join(text.split()) for text in texts] == [" ".join(e.split()) for e in expected]
    assert all("12 tokens, first after" in one for one in
               page.locator("article small").all_inner_texts()[:3])  # fmt: skip
    boxes = [card.bounding_box() for card in page.locator("article").all()]
    assert len({box["x"] for box in boxes}) == (1 if width == 400 else 4)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, back[4:-1].split(","))) < 384) == (scheme == "dark")
    assert {one.split("/")[2] for one in asked if not one.startswith("data:")} == {url[7:]}
    assert not wrong
    page.close()


def test_an_answer_is_stopped_and_an_error_is_shown(browser, server):
    import time

    loop, url = server
    page = browser.new_page()
    page.goto(url)
    page.get_by_label("API key").fill("sk-1")
    page.keyboard.press("Tab")
    page.locator("#models input").nth(4).wait_for()
    page.get_by_label("Prompt", exact=True).fill(PROBLEM)
    for name in PRESETS[:3]:
        page.get_by_label(name, exact=True).uncheck()
    page.get_by_label("Temperature").fill("2")
    loop.call(time.sleep, 1.5)
    page.get_by_role("button", name="Ask").click()
    page.keyboard.press("Escape")
    page.get_by_text("stopped").wait_for()
    assert page.get_by_role("button", name="Ask").is_enabled()
    page.get_by_label("Tokens at most").fill("9999")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("there is room for 256").wait_for()
    page.get_by_text("Settings").click()
    page.close()
