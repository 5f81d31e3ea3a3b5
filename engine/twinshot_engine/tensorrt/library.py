"""Find TensorRT or TensorRT for RTX, whichever is installed, and name its versions.

Both have the same Python interface; what differs is told by :class:`Library`. TensorRT builds for the GPU
that is in the machine. TensorRT for RTX builds for named GPUs, and needs none for that; it compiles the rest
of the way when an engine is loaded.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from twinshot_engine.errors import EngineFilesError

Version = tuple[int, ...]


class Release(NamedTuple):
    """Where a library is found and which releases are accepted.

    Attributes:
        modules: names it is imported by.
        first: the first release whose ONNX parser knows the operator Attention.
        before: the first that is too new.
        extra: what installs it, in words.
    """

    modules: tuple[str, ...]
    first: Version
    before: Version
    extra: str


RELEASES: Mapping[str, Release] = {
    "tensorrt_rtx": Release(
        ("tensorrt_rtx", "tensorrt_rtx_bindings"), (1, 2), (2,), "pip install 'twinshot-server[tensorrt-rtx]'"
    ),
    "tensorrt": Release(
        ("tensorrt", "tensorrt_bindings"), (10, 14), (11,), "pip install 'twinshot-server[tensorrt]'"
    ),
}
"""By name; what builds without a GPU comes first."""


class Library(NamedTuple):
    """An installed library.

    Attributes:
        name: ``tensorrt`` or ``tensorrt_rtx``.
        version: as it calls itself, such as ``1.7.1.116``. Engines run in the version that built them.
        api: its Python module.
    """

    name: str
    version: str
    api: Any

    @property
    def builds_ahead(self) -> bool:
        """Whether it builds for GPUs that this machine does not have."""
        return self.name == "tensorrt_rtx"


def find_library(name: str | None = None) -> Library:
    """Import the library of that name, or the first that is installed.

    Raises:
        EngineFilesError: there is none, or its version is not accepted.
    """
    wanted = tuple(RELEASES) if name is None else (name,)
    for each in wanted:
        module = _import(RELEASES[each].modules)
        if module is not None:
            return _checked(each, module)
    hints = " or ".join(f"{RELEASES[each].extra} ({each})" for each in wanted)
    raise EngineFilesError(f"{' and '.join(wanted)} cannot be imported: {hints} installs it.")


def _import(names: tuple[str, ...]) -> Any | None:
    for name in names:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    return None


def _checked(name: str, module: Any) -> Library:
    version, release = str(module.__version__), RELEASES[name]
    numbers = tuple(int(part) for part in version.split(".") if part.isdigit())
    if not release.first <= numbers < release.before:
        raise EngineFilesError(
            f"{name} is {version}, which is not supported: from {_dotted(release.first)} "
            f"to before {_dotted(release.before)} is."
        )
    return Library(name, version, module)


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
