"""What holds for every command: JSON, environment variables, completion, exit codes, streams."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer.main
from PIL import Image
from typer.testing import CliRunner

from twinshot_engine.checkpoint import BUILTIN_FOLDER
from twinshot_server.cli import app

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command that does something, by its path."""
    for name, inner in getattr(command, "commands", {}).items():
        yield from leaves(inner, (*path, name))
    if not hasattr(command, "commands"):
        yield path, command


ALIASES = {"--key": ["TWINSHOT_API_KEY"]}  # the client's variable
COMMANDS = dict(leaves(typer.main.get_command(app)))


def test_there_are_the_promised_commands() -> None:
    assert {path[0] for path in COMMANDS} == {
        *("serve", "generate", "inspect", "info", "doctor", "bench", "build", "distill", "evaluate"),
    }


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_option_is_an_environment_variable_of_its_name(path: tuple[str, ...]) -> None:
    text = CliRunner().invoke(app, [*path, "--help"], terminal_width=1000).stdout
    options = [option for option in COMMANDS[path].params if option.param_type_name == "option"]
    for option in options:
        long = next(name for name in option.opts if name.startswith("--"))
        if long == "--help":
            continue
        name = long.removeprefix("--").replace("-", "_").upper()
        own = "_".join(("TWINSHOT", *path, name)).upper()
        accepted = (own, f"TWINSHOT_{name}", *ALIASES.get(long, ()))
        assert any(f"[env var: {variable}" in text for variable in accepted), long


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_can_speak_json(path: tuple[str, ...]) -> None:
    assert any("--json" in option.opts for option in COMMANDS[path].params)


def test_variables_set_options_and_options_win(
    runner: CliRunner, fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TWINSHOT_GENERATE_SEED", "5")
    monkeypatch.setenv("TWINSHOT_GENERATE_FORMAT", "webp")
    monkeypatch.setenv("TWINSHOT_JSON", "1")
    monkeypatch.setenv("TWINSHOT_GENERATE_OUTPUT", "there.bin")
    assert json.loads(runner.invoke(app, ["generate", "a"]).stdout)["seed"] == 5
    assert json.loads(runner.invoke(app, ["generate", "a", "--seed", "6"]).stdout)["seed"] == 6
    with Image.open("there.bin") as image:
        assert image.format == "WEBP"


def test_help_tells_the_exit_codes() -> None:
    said = " ".join(CliRunner().invoke(app, ["--help"]).stdout.split())
    assert "0 done; 1 something broke or a check failed; 2 what was asked for cannot be done" in said
    assert "130 interrupted" in said


def test_bash_completes_commands_options_and_choices(run: Run) -> None:
    def complete(line: str) -> set[str]:
        words = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
        return set(run(_TWINSHOT_COMPLETE="complete_bash", **words).stdout.split())

    assert complete("twinshot in") == {"inspect", "info"}
    assert "--precision" in complete("twinshot generate --pre")
    assert {"kitty", "sixel"} <= complete("twinshot generate --show ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_can_be_shown(shell: str, run: Run) -> None:
    result = run(_TWINSHOT_COMPLETE=f"source_{shell}")
    assert result.returncode == 0
    assert "twinshot" in result.stdout


class Session:
    """The program with stderr on a terminal, which is read all the time, and stdout in a pipe."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._controller, terminal = pty.openpty()
        environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=terminal, text=True
        )
        os.close(terminal)
        self._pieces: list[bytes] = []
        self._reader = Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._controller, 65536):
                self._pieces.append(piece)
        except OSError:  # Linux says so when the other side is closed
            pass

    def line(self) -> str:
        """The next line on stdout."""
        assert self.process.stdout
        return self.process.stdout.readline()

    def end(self, number: signal.Signals | None = None) -> tuple[int, str, str]:
        """Exit code, the rest of stdout, and what was on the terminal; after a signal if one is given."""
        if number:
            self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=60)
        self._reader.join(10)
        return self.process.returncode, rest, b"".join(self._pieces).decode()

    def close(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.communicate()
        self._reader.join(10)
        os.close(self._controller)


@pytest.fixture
def on_terminal(program: str, tmp_path: Path) -> Iterator[Callable[..., Session]]:
    """Starts the program in an empty folder."""
    sessions: list[Session] = []

    def start(*arguments: str) -> Session:
        sessions.append(Session([program, *arguments], tmp_path))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


def shows_cursor(screen: str) -> bool:
    return screen.rindex("\x1b[?25h") > screen.rindex("\x1b[?25l")


def test_progress_goes_to_the_terminal_and_results_to_the_pipe(on_terminal: Callable[..., Session]) -> None:
    code, results, screen = on_terminal("generate", "a red car", "a dog", "--seed", "7").end()
    assert (code, results) == (0, "out-1.png\nout-2.png\n")
    assert "importing torch" in screen
    assert "picture 2 of 2" in screen
    assert "out-1.png" not in screen
    assert shows_cursor(screen)


def test_serve_shows_loading_and_says_as_json_that_it_is_ready(on_terminal: Callable[..., Session]) -> None:
    session = on_terminal("serve", "--port", "0", "--drain-seconds", "0", "--json")
    ready = json.loads(session.line())
    assert ready["url"].startswith("http://127.0.0.1:")
    assert ready["model"] == json.loads((BUILTIN_FOLDER / "twinshot.json").read_text())["name"]
    code, rest, screen = session.end(signal.SIGTERM)
    assert (code, rest) == (0, "")
    assert "━" in screen
    assert shows_cursor(screen)


def test_ctrl_c_ends_with_130_and_leaves_whole_files(
    on_terminal: Callable[..., Session], tmp_path: Path
) -> None:
    session = on_terminal("generate", "a red car", "-n", "64")
    first = session.line()
    code, _, screen = session.end(signal.SIGINT)
    assert (code, first) == (130, "out-01.png\n")
    assert shows_cursor(screen)
    paths = sorted(tmp_path.iterdir())
    assert 1 <= len(paths) < 64
    for path in paths:
        with Image.open(path) as image:
            image.load()
