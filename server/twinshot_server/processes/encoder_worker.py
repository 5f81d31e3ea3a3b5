"""The encoder: pixels to image files, in a process of its own.

fpng keeps the interpreter's lock while it compresses; in the front that would stop the event loop for
milliseconds a picture.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import structlog

from twinshot_server.images import encode
from twinshot_server.processes import channel
from twinshot_server.processes.arena import Arena
from twinshot_server.processes.messages import Encode, Encoded

_log = structlog.stdlib.get_logger("twinshot.encoder")


def run_encoder(stream: socket.socket, arena: Arena, threads: int) -> None:
    """Answer Encode messages until the other end hangs up."""
    lock = threading.Lock()

    def answer(order: Encode) -> None:
        reply = _encode(order, arena)
        with lock, contextlib.suppress(OSError):  # the front is gone, and so is who asked
            channel.send(stream, reply)

    with ThreadPoolExecutor(threads, "encode") as pool, contextlib.suppress(EOFError, OSError):
        while True:
            pool.submit(answer, channel.receive(stream))


def _encode(order: Encode, arena: Arena) -> Encoded:
    started = time.perf_counter()
    try:
        content = encode(arena.pixels(order.slot, order.size), order.image_format, order.quality)
        arena.write_file(order.slot, content)
    except Exception as error:  # one picture must not end the encoder  # noqa: BLE001
        _log.error("cannot encode", exc_info=error)
        return Encoded(order.call, None, time.perf_counter() - started)
    return Encoded(order.call, len(content), time.perf_counter() - started)
