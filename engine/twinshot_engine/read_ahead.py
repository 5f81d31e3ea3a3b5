"""Brings a checkpoint's files into memory while torch is still being imported.

Importing takes seconds in which no weight would be read, and afterwards one tensor would follow another,
page by page. Whole files, several at a time and in the order in which they are loaded, keep a disk or a
network volume busy from the first moment; what is in memory already costs a copy, at most. Nothing here
imports torch.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue

BUILTIN_FOLDER = Path(__file__).parent / "builtin" / "miniature"
_PIECE = 8 * 2**20
_THREADS = 4
_SHARE = 0.8
"""Part of the free memory that files may take: more would push out what was read before it is used."""


def read_ahead(reference: str) -> list[threading.Thread]:
    """Begin to read the weights of what `EngineConfig.checkpoint` names, if they are on this machine.

    Returns the threads that read; they end by themselves, and with the process.
    """
    files = _files(reference)
    if sum(path.stat().st_size for path in files) > _SHARE * free_memory():
        return []
    waiting: SimpleQueue[Path] = SimpleQueue()
    for path in files:
        waiting.put(path)
    count = min(_THREADS, len(files))
    threads = [threading.Thread(target=_read_all, args=[waiting], daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def free_memory() -> int:
    """Bytes that this process may still take, by machine and container; 0 if nobody tells."""
    free = re.search(r"^MemAvailable: +(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    limit, used = _text("/sys/fs/cgroup/memory.max"), _text("/sys/fs/cgroup/memory.current")
    counts = [int(free[1]) * 1024] if free else [0]
    if limit.isdecimal() and used.isdecimal():
        counts.append(int(limit) - int(used))
    return max(0, min(counts))


def _files(reference: str) -> Sequence[Path]:
    folder = BUILTIN_FOLDER if reference == "builtin" else Path(reference).expanduser()
    if not folder.is_dir():
        found = _find_in_cache(reference)
        if found is None:
            return []
        folder = found
    return sorted(folder.glob("*/*.safetensors"))  # which is the order in which parts are loaded


def _find_in_cache(reference: str) -> Path | None:
    """The folder of a Hub checkpoint `org/name[/subfolder][@revision]`, if it was fetched before."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name, _, revision = reference.partition("@")
    repository, subfolder = "/".join(name.split("/")[:2]), "/".join(name.split("/")[2:])
    index = f"{subfolder}/model_index.json" if subfolder else "model_index.json"
    try:
        found = try_to_load_from_cache(repository, index, revision=revision or None)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _read_all(waiting: SimpleQueue[Path]) -> None:
    buffer = bytearray(_PIECE)
    while True:
        try:
            path = waiting.get_nowait()
        except Empty:
            return
        try:
            with path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
        except OSError:  # who loads it will say what is wrong with it
            continue


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
