"""`twinshot generate` with many prompts and pictures, sheets, viewers, and a fake engine."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from twinshot_server import one_shot
from twinshot_server.cli import app
from twinshot_server.settings import Settings


def asked(fake_engine: Any) -> list[tuple[str, int]]:
    return [(request.prompt, request.seed) for (request,) in fake_engine.batches]


def color_of(path: str, place: tuple[int, int] = (0, 0)) -> Any:
    with Image.open(path) as image:
        return image.convert("RGB").getpixel(place)


def test_several_prompts_become_numbered_files(runner: CliRunner, fake_engine: Any) -> None:
    result = runner.invoke(app, ["generate", "a red car", "a dog", "--seed", "7", "-o", "a.webp"])
    assert (result.exit_code, result.stdout) == (0, "a-1.webp\na-2.webp\n")
    assert asked(fake_engine) == [("a red car", 7), ("a dog", 7)]
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["a-1.webp", "a-2.webp"]


def test_pictures_of_a_prompt_count_seeds_up(runner: CliRunner, fake_engine: Any) -> None:
    result = runner.invoke(app, ["generate", "a", "b", "-n", "5", "--seed", "4294967294"])
    seeds = [4294967294, 4294967295, 0, 1, 2]
    assert asked(fake_engine) == [(prompt, seed) for prompt in "ab" for seed in seeds]
    assert result.stdout.split() == [f"out-{number:02}.png" for number in range(1, 11)]
    assert [color_of(f"out-{number:02}.png")[0] for number in range(1, 6)] == [s % 256 for s in seeds]


def test_prompts_come_from_a_file_after_those_given(runner: CliRunner, fake_engine: Any) -> None:
    Path("prompts.txt").write_text("  ein Auto 🚗\n\n a dog \n", encoding="utf-8")
    assert runner.invoke(app, ["generate", "a cat", "-f", "prompts.txt"]).exit_code == 0
    assert [prompt for prompt, _ in asked(fake_engine)] == ["a cat", "ein Auto 🚗", "a dog"]


def test_prompts_come_from_stdin(runner: CliRunner, fake_engine: Any) -> None:
    result = runner.invoke(app, ["generate", "-f", "-"], input="a cat\r\na dog")
    assert result.exit_code == 0
    assert [prompt for prompt, _ in asked(fake_engine)] == ["a cat", "a dog"]


def test_words_never_taught_are_told_and_drawn_as_the_nearest(runner: CliRunner, fake_engine: Any) -> None:
    words = {"vocabulary": {"things": ["dog", "red"]}, "near": {"owl": "dog"}}
    fake_engine.info = replace(fake_engine.info, **words)
    result = runner.invoke(app, ["generate", "an owl and a zorp", "--seed", "7", "--json"])
    assert asked(fake_engine) == [("a dog and a zorp", 7)]
    assert "never taught: owl (dog instead), zorp" in result.stderr
    facts = json.loads(result.stdout)
    assert facts["prompt"] == "an owl and a zorp"
    assert facts["unknown_words"] == [{"word": "owl", "nearest": "dog"}, {"word": "zorp", "nearest": None}]
    assert "never taught" not in runner.invoke(app, ["generate", "a red dog"]).stderr


def test_a_grid_is_one_file_with_a_row_for_each_prompt(runner: CliRunner) -> None:
    result = runner.invoke(app, ["generate", "a", "b", "-n", "3", "--grid", "--seed", "10"])
    assert result.stdout == "out.png\n"
    with Image.open("out.png") as sheet:
        assert sheet.size == (3 * 64 + 2 * 4, 2 * 32 + 4)
    corners = [color_of("out.png", (column * 68, row * 36)) for row in range(2) for column in range(3)]
    assert corners == [(seed, seed, seed) for seed in (10, 11, 12, 10, 11, 12)]
    assert color_of("out.png", (65, 0)) == (255, 255, 255)


def test_a_grid_of_one_prompt_is_about_square(runner: CliRunner) -> None:
    runner.invoke(app, ["generate", "a", "-n", "5", "--grid"])
    with Image.open("out.png") as sheet:
        assert sheet.size == (3 * 64 + 2 * 4, 2 * 32 + 4)
    assert color_of("out.png", (2 * 68 + 5, 36 + 5)) == (255, 255, 255)


@pytest.mark.parametrize(("columns", "size"), [(1, (64, 4 * 36 - 4)), (3, (200, 68)), (9, (4 * 68 - 4, 32))])
def test_a_grid_is_as_wide_as_asked(columns: int, size: tuple[int, int], runner: CliRunner) -> None:
    runner.invoke(app, ["generate", "a", "b", "c", "d", "--grid", "--columns", str(columns)])
    with Image.open("out.png") as sheet:
        assert sheet.size == size


@pytest.mark.parametrize("grid", [True, False])
def test_json_has_a_line_for_each_picture(grid: bool, runner: CliRunner) -> None:
    options = ["--grid"] if grid else []
    result = runner.invoke(app, ["generate", "ä", "b", "--seed", "3", "--json", *options])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["prompt"] for line in lines] == ["ä", "b"]
    assert [line["output"] for line in lines] == (["out.png"] * 2 if grid else ["out-1.png", "out-2.png"])
    assert {line["seed"] for line in lines} == {3}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", " ", "c"], "prompt 2 of 3: prompt is empty"),
        (["a", "b", "--size", "512x512"], "'a': The size 512x512 is not supported"),
        (["a", "b", "--open"], "--open shows one file, not 2; add --grid"),
        (["a", "--grid", "--columns", "0"], "--columns must be at least 1, not 0"),
        (["a", "-n", "0"], "n: input should be greater than or equal to 1, not 0"),
        (["a", "-n", "65"], "n: input should be less than or equal to 64, not 65"),
        (["a", "-f", "nowhere.txt"], "nowhere.txt"),
        (["-f", "-"], "there is no prompt"),
        (["a", "--show", "vr"], "'vr' is not one of 'auto', 'kitty', 'iterm', 'sixel', 'blocks', 'never'"),
    ],
)
def test_one_bad_request_leaves_all_undrawn(
    arguments: list[str], said: str, runner: CliRunner, fake_engine: Any
) -> None:
    result = runner.invoke(app, ["generate", *arguments])
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr.splitlines()[-1]
    assert fake_engine.batches == []
    assert list(Path.cwd().iterdir()) == []


def test_a_file_that_is_no_text_is_refused(runner: CliRunner) -> None:
    Path("prompts.txt").write_bytes(b"a \xff dog")
    result = runner.invoke(app, ["generate", "-f", "prompts.txt"])
    assert result.exit_code == 2
    assert "cannot read prompts from 'prompts.txt'" in result.stderr


@pytest.mark.parametrize(("code", "said"), [(0, ""), (1, "No viewer could be started here")])
def test_open_starts_the_desktops_viewer(
    code: int, said: str, runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("typer.launch", lambda path: opened.append(path) or code)
    result = runner.invoke(app, ["generate", "a", "b", "--grid", "--open", "-o", "both.png"])
    assert (result.exit_code, opened) == (0, ["both.png"])
    assert said in result.stderr.splitlines()[-1]


@pytest.mark.parametrize(("backend", "warmed"), [("eager", 0), ("fused", 1)])
def test_an_engine_that_replays_graphs_is_warmed_first(
    backend: str, warmed: int, runner: CliRunner, fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    fake_engine.info = replace(fake_engine.info, backend=backend)
    monkeypatch.setattr(fake_engine, "warm", lambda _progress: calls.append(len(fake_engine.batches)))
    assert runner.invoke(app, ["generate", "a red car"]).exit_code == 0
    assert calls == [0] * warmed


@pytest.mark.parametrize(
    ("options", "backend"),
    [([], "eager"), (["-n", "17"], "auto"), (["--backend", "fused"], "fused")],
)
def test_graphs_are_captured_only_where_they_pay(
    options: list[str], backend: str, runner: CliRunner, fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Settings] = []
    monkeypatch.setattr(one_shot, "load_engine", lambda settings, _: loaded.append(settings) or fake_engine)
    arguments = ["generate", "a", "--size", "32x32", "--steps", "any:2", *options]
    assert runner.invoke(app, arguments).exit_code == 0
    assert [(each.backend, each.sizes, each.steps) for each in loaded] == [(backend, "32x32", "any:2")]
    assert {request.steps for (request,) in fake_engine.batches} == {2}


def test_pictures_are_shown_where_asked_for_and_never_with_json(runner: CliRunner) -> None:
    arguments = ["generate", "a", "--show", "iterm"]
    assert "\x1b]1337;File=" in runner.invoke(app, arguments).stdout
    assert "\x1b" not in runner.invoke(app, [*arguments, "--json"]).stdout
