"""The commands with a fake engine: what they write, print and refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from twinshot_server import __version__, saving
from twinshot_server.cli import app


def test_generate_writes_the_picture_and_says_where(runner: CliRunner) -> None:
    result = runner.invoke(app, ["generate", "a red car", "--seed", "7"])
    assert (result.exit_code, result.stdout) == (0, "out.png\n")
    assert "seed 7, 64x32, text 1 ms, denoise 2 ms, decode 3 ms" in result.stderr
    with Image.open("out.png") as image:
        assert (image.format, image.size, image.getpixel((0, 0))) == ("PNG", (64, 32), (7, 7, 7))


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        (["-o", "a.jpg"], "a.jpg", "JPEG"),
        (["-o", "a.WEBP", "--quality", "50"], "a.WEBP", "WEBP"),
        (["-o", "a.bin", "--format", "png"], "a.bin", "PNG"),
    ],
)
def test_the_format_follows_the_name_or_the_option(
    options: list[str], name: str, expected: str, runner: CliRunner
) -> None:
    assert runner.invoke(app, ["generate", "a red car", *options]).exit_code == 0
    with Image.open(name) as image:
        assert image.format == expected


def test_generate_asks_the_engine_for_what_was_asked(runner: CliRunner, fake_engine: Any) -> None:
    runner.invoke(app, ["generate", "ein Auto 🚗", "--size", "32x32", "--steps", "2", "--seed", "9"])
    ((request,),) = fake_engine.batches
    assert (request.prompt, request.seed, request.width, request.steps) == ("ein Auto 🚗", 9, 32, 2)


def test_a_random_seed_is_told(runner: CliRunner, fake_engine: Any) -> None:
    result = runner.invoke(app, ["generate", "a red car", "--json"])
    facts = json.loads(result.stdout)
    assert facts["seed"] == fake_engine.batches[0][0].seed
    assert f"seed {facts['seed']}," in result.stderr
    assert (facts["output"], facts["width"], facts["timings_ms"]["denoise"]) == ("out.png", 64, 2.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([""], "prompt is empty"),
        (["a\x07"], "U+0007 at position 1"),
        (["a", "--seed", "-1"], "greater than or equal to 0, not -1"),
        (["a", "--seed", "abc"], "'abc' is not a whole number"),
        (["a", "--steps", "1.5"], "'1.5' is not a whole number"),
        (["a", "--steps", "some:4"], "'some:4' is not a whole number, nor such as any:4"),
        (["a", "--steps", "3"], "3 steps are not supported; supported: 1 to 2"),
        (["a", "--size", "12"], "is '12'; it must look like 256x256"),
        (["a", "--size", "512x512"], "supported: 64x32, 32x32"),
        (["a", "--quality", "0", "-o", "a.jpg"], "not 0"),
        (["a", "--quality", "50"], "png is lossless"),
        (["a", "--format", "gif"], "gif"),
        (["a", "-o", "a.gif"], "'a.gif'; end its name with .png, .jpg, .jpeg, .webp"),
        (["a", "-o", "nowhere/a.png"], "no folder 'nowhere'"),
        (["a", "-o", ".", "--format", "png"], "is a folder"),
        (["a", "--precision", "int4"], "'int4' is not one of 'auto', 'fp32', 'bf16'"),
        (["a", "--threads", "0"], "not 0"),
        ([], "there is no prompt"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments: list[str], said: str, runner: CliRunner) -> None:
    result = runner.invoke(app, ["generate", *arguments])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert said in result.stderr.splitlines()[-1]
    assert list(Path.cwd().iterdir()) == []


def test_a_failing_write_leaves_the_old_picture_and_nothing_else(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_self: Path, _target: Path) -> None:
        raise OSError(28, "No space left on device")

    Path("out.png").write_text("old")
    monkeypatch.setattr(saving.Path, "replace", full)
    result = runner.invoke(app, ["generate", "a red car"])
    assert result.exit_code == 2
    assert "cannot write 'out.png': No space left on device" in result.stderr
    assert [path.read_text() for path in Path.cwd().iterdir()] == ["old"]


def test_a_new_picture_has_the_rights_of_any_new_file(runner: CliRunner) -> None:
    runner.invoke(app, ["generate", "a red car"])
    Path("other").touch()
    assert Path("out.png").stat().st_mode == Path("other").stat().st_mode


def test_info_tells_about_model_versions_and_settings(runner: CliRunner) -> None:
    text = runner.invoke(app, ["info"]).stdout
    assert re.search("family +FakePipeline", text)
    assert re.search("sizes +64x32, 32x32", text)
    facts = json.loads(runner.invoke(app, ["info", "--json", "--threads", "3"]).stdout)
    assert facts["model"]["sizes"] == ["64x32", "32x32"]
    assert facts["versions"]["twinshot"] == __version__
    assert facts["settings"]["threads"] == 3


def test_settings_come_from_the_environment_too(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWINSHOT_THREADS", "2")
    monkeypatch.setenv("TWINSHOT_MAX_QUEUE", "5")
    settings = json.loads(runner.invoke(app, ["info", "--json"]).stdout)["settings"]
    assert (settings["threads"], settings["max_queue"]) == (2, 5)
    monkeypatch.setenv("TWINSHOT_THREADS", "many")
    assert "'many' is not a whole number" in runner.invoke(app, ["info"]).stderr


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"{__version__}\n"
