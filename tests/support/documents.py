"""Reads fenced blocks out of Markdown, and says what tests do with each."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "clients/python/README.md"}
    | set((ROOT / "docs").glob("*.md"))
)

ADMIN_KEY = "admin-key-of-the-tests"
"""What documents call `$TWINSHOT_ADMIN_KEY`."""

SHELL = frozenset({"sh", "bash", "shell", "console"})
PYTHON = frozenset({"py", "python"})
SHOWN = frozenset({"", "text", "json", "toml", "yaml", "html", "javascript", "promql"})
"""Languages of blocks that only show something."""

MARK = "# not run by the tests: "
REASONS = frozenset({"it needs a GPU", "it needs the network", "it takes minutes"})
"""Why a block may begin with a line that says that it is not run; readers see that line."""

_FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^\1```[ ]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its page, the line its code begins at, its language and its code."""

    page: Path
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def reason(self) -> str | None:
        """Why it is not run, if the block itself says so. Raises ValueError for a reason that is none."""
        first = self.code.partition("\n")[0]
        if not first.startswith(MARK):
            return None
        reason = first.removeprefix(MARK).rstrip(".")
        if reason not in REASONS:
            raise ValueError(f"{self} is not run because {reason!r}; accepted: {', '.join(sorted(REASONS))}")
        return reason


def blocks_in(text: str, page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(text):
        indent, language, code = match.groups()
        line = text.count("\n", 0, match.start(3)) + 1
        found.append(Block(page, line, language, re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)))
    return found


BLOCKS = [block for page in PAGES for block in blocks_in(page.read_text("utf-8"), page)]
