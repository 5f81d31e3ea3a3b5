"""Type, and see: on the built-in checkpoint, as newcomers do."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from PIL import Image
from tabs import Playground

from soak.servers import Server

Make = Callable[..., Playground]
PROMPT = "a blue teapot and a yellow cup"


@pytest.fixture
def page(make_playground: Make, miniature: Server) -> Iterator[Playground]:
    """The page with its first picture; its console must stay silent."""
    playground = make_playground(miniature, permissions=["clipboard-read", "clipboard-write"]).open()
    yield playground
    assert playground.errors == []


def drawn(server: Server, prompt: str, seed: int, **fields: object) -> Image.Image:
    """What POST /generate draws."""
    return Image.open(io.BytesIO(server.post(prompt, seed=seed, **fields).raise_for_status().content))


def difference(one: Image.Image, other: Image.Image) -> float:
    """By how many levels of 255 two pictures differ on average."""
    return float(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).mean())


def clipboard(page: Playground) -> str:
    text: str = page.page.evaluate("navigator.clipboard.readText()")
    return text


def test_the_picture_follows_what_is_typed(page: Playground, miniature: Server) -> None:
    assert page.page.evaluate("document.activeElement.id") == "prompt"
    before = page.pixels()
    page.type(PROMPT, delay=60)
    page.wait_for_picture(prompt=PROMPT)
    assert page.pixels() != before
    seen = {picture["prompt"] for picture in page.pictures}
    assert len(seen) > 2, "pictures came while it was being typed, not only at the end"
    assert all(PROMPT.startswith(prompt) for prompt in seen - {page.pictures[0]["prompt"]})
    assert {picture["seed"] for picture in page.pictures} == {7}, "a locked seed: only the words change"
    shown = Image.open(io.BytesIO(base64.b64decode(page.pixels().partition(",")[2]))).convert("RGB")
    assert difference(shown, drawn(miniature, PROMPT, 7)) < 3


def test_everything_comes_from_this_server_and_is_light(page: Playground, miniature: Server) -> None:
    assert {urlsplit(url).netloc for url in page.asked} == {urlsplit(miniature.url).netloc}
    loaded = {url for url in page.asked if url.startswith("http") and "livez" not in url}
    assert f"{miniature.url}/static/app.js" in loaded
    plain = {"Accept-Encoding": "identity"}
    assert sum(len(httpx2.get(url, headers=plain).content) for url in loaded) <= 60_000
    policy = httpx2.get(miniature.url).headers["Content-Security-Policy"]
    assert "script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy


def test_seeds_step_by_key_and_by_button(page: Playground) -> None:
    for key, seed in [("ArrowUp", 8), ("ArrowDown", 7), ("Alt+ArrowDown", 6), ("Enter", 7)]:
        page.page.focus("#prompt")
        page.page.keyboard.press(key)
        page.wait_for_picture(seed=seed)
    page.page.click("#following")
    page.wait_for_picture(seed=8)
    page.page.focus("#download")
    page.page.keyboard.press("ArrowLeft")
    page.wait_for_picture(seed=7)
    page.page.keyboard.press("/")
    assert page.page.evaluate("document.activeElement.id") == "prompt"
    page.page.fill("#seed", "4294967295")
    page.wait_for_picture(seed=4294967295)
    page.page.press("#seed", "ArrowUp")
    page.wait_for_picture(seed=0)
    page.page.fill("#seed", "-1")
    assert page.page.get_attribute("#seed", "aria-invalid") == "true"


def test_an_unlocked_seed_changes_with_the_words(page: Playground) -> None:
    page.page.click("#lock")
    page.type("a dog")
    page.wait_for_picture(prompt="a dog")
    assert page.pictures[-1]["seed"] != 7
    assert page.page.input_value("#seed") == str(page.pictures[-1]["seed"])


def test_variations_are_side_by_side(page: Playground) -> None:
    page.page.check("[name=n][value='4']")
    page.until(lambda: {picture["tile"] for picture in page.pictures} == {0, 1, 2, 3})
    assert len({page.pixels(tile) for tile in range(4)}) == 4
    assert [picture["seed"] for picture in page.pictures[-4:]] == [7, 8, 9, 10]
    page.page.click("#stage .tile:nth-child(3)")
    assert page.page.get_attribute("#stage .tile:nth-child(3)", "aria-pressed") == "true"
    page.page.click("#following")
    page.until(lambda: [picture["seed"] for picture in page.pictures[-4:]] == [11, 12, 13, 14])


def test_an_input_method_composes_in_peace(page: Playground) -> None:
    page.type("x")
    page.wait_for_picture(prompt="x")
    count = len(page.pictures)
    session = page.page.context.new_cdp_session(page.page)
    for text in ("n", "ne", "ねk", "ねこ"):
        session.send("Input.imeSetComposition", {"text": text, "selectionStart": 2, "selectionEnd": 2})
    page.page.wait_for_timeout(300)
    assert len(page.pictures) == count
    session.send("Input.insertText", {"text": "猫"})
    page.wait_for_picture(prompt="x猫")
    assert {picture["prompt"] for picture in page.pictures[count:]} == {"x猫"}


def test_unknown_words_are_marked_and_told(page: Playground) -> None:
    prompt = "a red palace, two dragons and a zorp"
    page.type(prompt)
    page.wait_for_picture(prompt=prompt)
    page.until(lambda: page.page.locator("mark").all_inner_texts() == ["palace", "dragons", "zorp"])
    told = "This model was never taught: palace (castle instead), dragons (dinosaurs instead), zorp"
    assert page.text("#note") == told
    page.page.fill("#prompt", "")
    assert page.text("#note") == ""
    page.page.click("#words summary")
    page.page.click("#vocabulary button:text-is('wine glass')")
    assert page.page.input_value("#prompt") == "wine glass"
    page.wait_for_picture(prompt="wine glass")
    assert page.text("#note") == ""
    example = page.page.locator("#examples button").nth(1).inner_text()
    page.page.locator("#examples button").nth(1).click()
    page.wait_for_picture(prompt=example)


def test_the_milliseconds_are_split(page: Playground) -> None:
    parts = page.page.locator("#legend dt").all_inner_texts()
    assert parts == ["network", "queue", "text", "denoise", "decode", "encode"]
    figures = dict(zip(parts, page.page.locator("#legend dd").all_inner_texts(), strict=True))
    spent = {part: float(figure.removesuffix(" ms")) for part, figure in figures.items()}
    assert spent["denoise"] > 0 < spent["decode"]
    assert float(page.text("#total")) >= sum(spent.values()) - 6
    page.page.keyboard.press("ArrowUp")
    page.wait_for_picture(seed=8)
    assert len(page.page.get_attribute("#line", "points").split()) == len(page.pictures)
    assert "median" in page.text("#summary")


def test_history_brings_settings_back(page: Playground) -> None:
    first = page.pictures[-1]
    page.until(lambda: page.page.locator("#history button").count() == 1)
    page.type(PROMPT)
    page.until(lambda: page.page.locator("#history button").count() == 2)
    assert page.page.get_attribute("#history button", "aria-label") == f"{PROMPT}, seed 7"
    page.page.locator("#history button").nth(1).click()
    page.wait_for_picture(prompt=first["prompt"])
    assert page.page.input_value("#prompt") == first["prompt"]
    page.page.wait_for_timeout(900)
    assert page.page.locator("#history button").count() == 2


def test_a_link_shows_the_same_picture(page: Playground, make_playground: Make, miniature: Server) -> None:
    page.type(PROMPT)
    page.page.fill("#seed", "11")
    page.wait_for_picture(prompt=PROMPT, seed=11)
    page.until(lambda: "seed=11" in page.page.url)
    page.page.click("#share")
    page.until(lambda: page.text("#done") == "Link copied.")
    link = clipboard(page)
    assert link == page.page.url
    other = make_playground(miniature).open("#" + link.partition("#")[2])
    other.wait_for_picture(prompt=PROMPT, seed=11)
    assert other.pixels() == page.pixels()
    other.page.evaluate("location.hash = '#seed=12'")
    other.wait_for_picture(prompt=PROMPT, seed=12)


def test_the_download_is_lossless_and_says_what_it_shows(page: Playground, miniature: Server) -> None:
    prompt = "a red car — “große” 猫"
    page.type(prompt)
    page.wait_for_picture(prompt=prompt)
    with page.page.expect_download() as download:
        page.page.click("#download")
    assert download.value.suggested_filename == "twinshot-a-red-car-große-猫-7.png"
    image = Image.open(download.value.path())
    image.load()
    assert image.tobytes() == drawn(miniature, prompt, 7, format="png").tobytes()
    told = json.loads(image.text["Comment"])
    assert told == {"prompt": prompt, "seed": 7, "size": "256x256", "steps": 1, "model": "twinshot-miniature"}
    assert image.text["Description"] == prompt
    assert image.text["parameters"].endswith("Steps: 1, Seed: 7, Size: 256x256, Model: twinshot-miniature")


def test_the_picture_can_be_copied(page: Playground) -> None:
    page.page.click("#copy")
    page.until(lambda: page.text("#done") == "Picture copied.")
    assert page.page.evaluate("navigator.clipboard.read().then(([item]) => item.types)") == ["image/png"]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("language", ["curl", "python"])
def test_the_code_draws_what_is_on_screen(
    language: str, n: int, page: Playground, miniature: Server, tmp_path: Path
) -> None:
    prompt = 'a "red" car\'s $HOME `id` \\ 猫'
    page.page.check(f"[name=n][value='{n}']")
    page.page.fill("#prompt", prompt)
    page.wait_for_picture(prompt=prompt, tile=n - 1)
    page.page.check(f"[name=language][value={language}]")
    page.page.click("#copy-code")
    page.until(lambda: page.text("#done") == "Code copied.")
    program = ["bash", "-ec"] if language == "curl" else [sys.executable, "-c"]
    subprocess.run([*program, clipboard(page)], cwd=tmp_path, check=True, timeout=60, capture_output=True)
    expected = drawn(miniature, prompt, 7, format="png").tobytes()
    if n == 1:
        assert Image.open(tmp_path / "picture.png").tobytes() == expected
    elif language == "python":
        assert {path.name for path in tmp_path.iterdir()} == {f"picture-{seed}.png" for seed in (7, 8, 9)}
        assert Image.open(tmp_path / "picture-7.png").tobytes() == expected
    else:
        answer = json.loads((tmp_path / "pictures.json").read_text())
        assert [image["seed"] for image in answer["images"]] == [7, 8, 9]


def test_what_the_model_cannot_do_is_told(page: Playground) -> None:
    page.page.fill("#prompt", "word " * 700)
    page.until(lambda: "token" in page.text("#problem"))
    page.page.fill("#prompt", "a dog")
    page.wait_for_picture(prompt="a dog")
    assert page.text("#problem") == ""
