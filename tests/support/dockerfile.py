"""Reads a Dockerfile into stages, and replays the steps of some of them where no Docker engine is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """One FROM and what follows: (instruction, rest of the line), comments and continuations removed."""

    name: str
    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """What every such instruction says, in order."""
        return [rest for name, rest in self.steps if name == instruction]

    def pairs(self, instruction: str) -> dict[str, str]:
        """NAME=value pairs of ENV, ARG or LABEL."""
        found = re.findall(r'([\w./-]+)=("[^"]*"|\S+)', " ".join(self.all(instruction)))
        return {name: value.strip('"') for name, value in found}

    def command(self, instruction: str) -> list[str]:
        """The last such instruction, without options, in exec form. Raises ValueError for shell form."""
        return list(json.loads(re.sub(r"^(--\S+ +)*(CMD +)?", "", self.all(instruction)[-1])))


def stages(path: Path) -> dict[str, Stage]:
    """The stages of a Dockerfile by their names."""
    lines = [line for line in path.read_text("utf-8").splitlines() if not line.lstrip().startswith("#")]
    found: dict[str, Stage] = {}
    for line in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(name, base)
        elif instruction and found:
            stage.steps.append((instruction, rest.strip()))
    return found


@dataclass
class Replay:
    """Runs the RUN and COPY steps of stages on this machine, below a folder that stands for the root."""

    root: Path
    context: Path
    arguments: dict[str, str]

    def run(self, stage: Stage) -> None:
        """Replay one stage, with a fresh virtual environment as the base image's Python."""
        python = self.root / f"python-{stage.name}"
        subprocess.run([sys.executable, "-m", "venv", str(python)], check=True)
        folder, environment = self.root, dict(os.environ) | self.arguments
        environment |= {"PATH": f"{python}/bin{os.pathsep}{os.environ['PATH']}", "PYTHONSAFEPATH": "1"}
        environment.pop("PYTHONPATH", None)
        for instruction, rest in stage.steps:
            if instruction == "WORKDIR":
                folder = self.inside(rest)
                folder.mkdir(parents=True, exist_ok=True)
            elif instruction == "COPY":
                self.copy(*rest.split(), folder)
            elif instruction == "RUN":
                command = re.sub(r"^(--mount=\S+ )+", "", rest)
                for place in ("/source", "/locks", "/wheels", "/opt/twinshot"):
                    command = re.sub(rf"(?<![\w/.]){place}\b", str(self.inside(place)), command)
                subprocess.run(["bash", "-euc", command], cwd=folder, env=environment, check=True)

    def copy(self, source: str, target: str, folder: Path) -> None:
        """COPY from the context; the target is a file or a folder as the source is."""
        there = folder if target == "." else self.inside(target)
        if (self.context / source).is_dir():
            shutil.copytree(self.context / source, there, dirs_exist_ok=True)
        else:
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.context / source, there)

    def inside(self, path: str) -> Path:
        """A path of the image below the root."""
        return self.root / path.lstrip("/")
