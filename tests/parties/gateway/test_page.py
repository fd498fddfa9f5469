"""The page in a real browser: a conversation with what left this machine beside it, an error, a reload."""

from __future__ import annotations

import re
import shutil

import pytest
import torch
from blindformer.tests.conftest import PICTURED

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        # The sandbox needs a user who is not root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, gateway):
    """The page with the key in its fragment, and what its console says: nothing, where its policy lets all run."""
    context = browser.new_context(viewport={"width": 360, "height": 740})
    page, console = context.new_page(), []
    page.on("console", lambda message: console.append(message.text))
    page.on("pageerror", lambda error: console.append(str(error)))
    page.set_default_timeout(20_000)
    page.goto(f"{gateway.url}/#key={gateway.key}")
    page.wait_for_selector("#model option", state="attached")
    yield page
    assert [line for line in console if "status of 4" not in line] == []
    context.close()


def test_a_conversation_by_keyboard_and_what_left_this_machine(page, gateway):
    page.keyboard.type("Hi")
    page.keyboard.press("Enter")
    api.expect(page.locator("#travelled tr")).to_have_count(6, timeout=60_000)
    assert re.search(r"until the answer\s*[\d.]+ s", page.inner_text("#travelled"))
    api.expect(page.locator("#spoken p.assistant small")).to_have_text(re.compile(r"[\d.]+ s"))
    assert page.inner_text("#typed") == "Hi"
    assert re.search(r"to the server\s*[\d.]+ [kM]?B", page.inner_text("#travelled"))
    assert page.inner_text("#spoken p.user") == "Hi"
    assert "learns nothing about the text" in page.inner_text("#learned")
    assert re.search(r"released to the client\s*\w+\.", page.inner_text("#learned"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.keyboard.type("x" * 60)
    page.keyboard.press("Enter")
    api.expect(page.locator("#error")).to_contain_text("tokens, and the model takes")
    assert page.input_value("#text") == "x" * 60


def test_the_key_is_in_memory_only(page, gateway):
    assert gateway.key not in page.url
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    page.reload()
    api.expect(page.locator("#key")).to_be_focused()
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    api.expect(page.locator("#error")).to_contain_text("key: is wrong")
    page.fill("#key", gateway.key)
    page.keyboard.press("Enter")
    api.expect(page.locator("#text")).to_be_focused()


def test_images_are_dropped_and_the_server_sees_noise(page, pictures):
    page.select_option("#model", "pictures")
    api.expect(page.locator("#files")).to_be_focused()
    page.set_input_files("#files", sorted(pictures.iterdir())[:2])
    api.expect(page.locator("#pictures table tr")).to_have_count(2 * len(PICTURED))
    shown = "[...document.getElementById('seen').getContext('2d').getImageData(0, 0, 32, 32).data]"
    dots = torch.tensor(page.evaluate(shown)).reshape(-1, 4)[:, 0]
    assert 90 < dots.double().mean() < 165
    page.set_input_files("#files", {"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    api.expect(page.locator("#error")).to_contain_text("a.png: input: the image: is no image that can be read")
