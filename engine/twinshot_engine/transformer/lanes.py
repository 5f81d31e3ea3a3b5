"""Two lanes of work on a GPU: the text's small products beside the image's large ones.

A dual-stream block does the same to 4096 image tokens and to 100 text tokens, whose products only read
weights. On a stream of its own that reading can hide behind the image's arithmetic. A CUDA graph captures
both lanes.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


class Lanes:
    """Where two independent pieces of work run; in turn, unless they are to run in parallel on a GPU.

    After :meth:`fork`, work under :meth:`second` does not wait for work outside of it, until :meth:`join`.
    What the second lane reads must stay referenced until then.

    Args:
        device: of the work.
        parallel: whether the second lane is a stream of its own, on a GPU.
    """

    def __init__(self, device: torch.device, *, parallel: bool) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None
        if parallel and device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def fork(self) -> None:
        """Let the second lane see what was done so far."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def second(self) -> AbstractContextManager[object]:
        """Work in the second lane for a while."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def join(self) -> None:
        """Let what follows see what the second lane did."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
