"""The playground of `sconce serve` in a real browser, beside what the API itself answers."""

import json
import math
import re
import urllib.request

import pytest
from commands import serving
from small_run import write_run
from tiny import INSTALLED

BACKEND = INSTALLED[-1]
POSITIONS = 4096


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    pytest.importorskip("starlette", reason="pip install 'sconce-lm[serve]'")
    run = write_run(tmp_path_factory.mktemp("models") / "night", max_position_embeddings=POSITIONS)
    with serving(run, BACKEND) as (address, _):
        yield address + "/"


def answer(server, **asked):
    body = json.dumps({"temperature": 0.8, "top_k": 50, **asked}).encode()
    request = urllib.request.Request(f"{server}v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]


def ask(page, prompt, **options):
    page.fill("#prompt", prompt)
    for name, value in options.items():
        page.fill(f"#{name}", str(value))
    page.click("#run")


def ended(page):
    from playwright.sync_api import expect

    expect(page.locator("#run")).to_be_enabled(timeout=30_000)
    return page.locator("#status").inner_text()


def rows(page):
    """What the panel shows: text, probability, and whether it was drawn."""
    found = page.locator("#detail tr").all()
    cells = [(row.locator("td").all_text_contents(), row.get_attribute("class")) for row in found]
    return [(text, float(share.removesuffix(" %")) / 100, kind == "drawn") for (text, share, _), kind in cells]


def shown(text):
    return text.replace("\n", "↵").replace("\t", "⇥").replace(" ", "·")


def test_what_the_page_writes_is_what_the_api_answers(open_page, server):
    told = answer(server, prompt="a lamp", max_tokens=40, seed=3, logprobs=8)
    with open_page(server) as page:
        assert page.locator("#model").inner_text() == f"night, {POSITIONS} positions"
        empty = "getComputedStyle(document.getElementById('output'), '::before').content"
        assert page.locator("html").evaluate(f"() => {empty}") == '"What the model writes comes here."'
        ask(page, "a lamp", max_tokens=40, seed=3)
        assert re.fullmatch(r"40 tokens, \d+ a second, reached max tokens", ended(page))
        tokens = page.locator("#output .token")
        assert tokens.all_text_contents() == told["logprobs"]["tokens"]
        assert page.locator("html").evaluate(f"() => {empty}") == "none"
        page.locator("#adopt").click()
        assert page.input_value("#prompt") == "a lamp" + told["text"]


def test_pointing_shows_what_else_was_likely_and_a_click_keeps_it(open_page, server):
    told = answer(server, prompt="a lamp", max_tokens=12, seed=3, logprobs=8)["logprobs"]
    with open_page(server) as page:
        ask(page, "a lamp", max_tokens=12, seed=3)
        ended(page)
        tokens = page.locator("#output .token")
        for index in (0, 5, 11):
            tokens.nth(index).hover()
            likely = {*told["top_logprobs"][index].items(), (told["tokens"][index], told["token_logprobs"][index])}
            expected = sorted(((shown(text), math.exp(value)) for text, value in likely), key=lambda row: -row[1])
            found = rows(page)
            assert [share for _, share, _ in found] == pytest.approx([share for _, share in expected], abs=6e-5)
            assert {text for text, _, _ in found} == {text for text, _ in expected}
            assert [text for text, _, drawn in found if drawn] == [shown(told["tokens"][index])]
        assert "before temperature" in page.locator("#detail").inner_text()
        tokens.nth(2).click()
        kept = rows(page)
        tokens.nth(7).hover()
        assert rows(page) != kept
        page.mouse.move(1, 1)
        assert rows(page) == kept
        page.keyboard.press("ArrowRight")
        assert page.locator(".token.chosen").evaluate_all("(all) => all.map((one) => one.tabIndex)") == [-1]
        assert [text for text, _, drawn in rows(page) if drawn] == [shown(told["tokens"][3])]


def test_tokens_stream_and_stop_stops_them(open_page, server):
    from playwright.sync_api import expect

    with open_page(server) as page:
        ask(page, "the wall", max_tokens=POSITIONS - 100, temperature=0)  # which goes round in circles
        expect(page.locator("#output .token").nth(20)).to_be_attached(timeout=30_000)
        page.click("#halt")
        stopped = re.fullmatch(r"(\d+) tokens, stopped", ended(page))
        assert 20 < int(stopped[1]) < POSITIONS - 100
        assert page.locator("#output .token").count() == int(stopped[1])
        ask(page, "the hill", max_tokens=5)
        assert ended(page).startswith("5 tokens")
        assert page.locator("#output .given").inner_text() == "the hill"


def test_a_line_break_breaks_the_line(open_page, server):
    with open_page(server) as page:
        ask(page, "a", max_tokens=400, seed=1, temperature=2, top_k=0)
        ended(page)
        text = "".join(page.locator("#output .token").all_text_contents())
        assert page.locator("#output").inner_text() == "a" + text
        assert page.locator("#output .token").first.evaluate("(token) => getComputedStyle(token).display") == "inline"


@pytest.mark.parametrize("width", [360, 1600])
def test_nothing_overflows(open_page, server, width):
    with open_page(server, viewport={"width": width, "height": 800}) as page:
        ask(page, "a lamp " * 40, max_tokens=30)
        ended(page)
        assert page.locator("html").evaluate("(root) => root.scrollWidth") <= width


def test_a_refusal_is_told_and_the_key_is_asked_for(chromium, tmp_path):
    run = write_run(tmp_path / "night")
    with serving(run, BACKEND, "--api-key", "secret") as (address, _):
        page = chromium.new_page()
        page.goto(address)
        page.locator("#key").fill("secret")
        page.locator("#key").blur()
        ask(page, "x" * 2000, max_tokens=5)
        assert "128 positions" in ended(page)
        ask(page, "a lamp", max_tokens=5)
        assert ended(page).startswith("5 tokens")
        page.close()
