"""One engine: it loads, warms up and then draws what the front sends, batch after batch.

A thread of its own reads messages, so that requests are validated and unwanted work is noted while the engine
draws. Another one loads adapters meanwhile; only pictures that name one wait for it. What one request causes
never reaches its neighbours: a batch that fails is tried again in parts.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import structlog

from twinshot_engine.errors import InvalidRequestError
from twinshot_engine.types import GeneratedBatch
from twinshot_server.engine_protocol import LOADING_ERRORS, ImageEngine, Progress
from twinshot_server.processes import channel
from twinshot_server.processes.arena import Arena
from twinshot_server.processes.calibration import measure_costs
from twinshot_server.processes.messages import (
    Answered,
    Begin,
    CannotLoad,
    ChangeAdapter,
    Cost,
    Draw,
    Drawn,
    Finished,
    Forget,
    Loading,
    NotDrawn,
    Ready,
    Task,
    Validate,
)
from twinshot_server.processes.start_clock import MEASURING

_log = structlog.stdlib.get_logger("twinshot.engine")


class _HungUpError(Exception):
    """The front is gone."""


class BrokenEngineError(Exception):
    """The engine cannot go on, as after a fault of the GPU: only a new process can."""


class EngineWorker:
    """Serves one engine over a socket until the other end hangs up or the engine breaks.

    `batches` are the batch sizes whose cost is worth measuring. `on_hang_up` is called on the reading thread
    once the front is gone, even while the engine is busy or hangs.
    """

    def __init__(
        self,
        stream: socket.socket,
        arena: Arena,
        load: Callable[[Progress], ImageEngine],
        batches: Sequence[int],
        on_hang_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._stream = stream
        self._arena = arena
        self._load = load
        self._batches = batches
        self._on_hang_up = on_hang_up
        self._sending = threading.Lock()
        self._orders: queue.SimpleQueue[Draw | None] = queue.SimpleQueue()
        self._changes: queue.Queue[ChangeAdapter] = queue.Queue()
        self._forgotten: set[tuple[int, int]] = set()
        self._hung_up = threading.Event()
        self._lookups = (0, 0)

    def run(self) -> None:
        """Load, then draw. Raises BrokenEngineError."""
        try:
            self._serve()
        except _HungUpError:
            pass
        finally:
            # Closing would not do: the thread that reads holds the socket open, in its sleep.
            with contextlib.suppress(OSError):
                self._stream.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        engine = self._prepare()
        if engine is not None:
            for name, work in (("read", self._read), ("adapters", self._change_adapters)):
                threading.Thread(target=work, args=[engine], name=name, daemon=True).start()
            while order := self._orders.get():
                if any(task.request.adapter for task in order.tasks):
                    self._changes.join()
                self._draw_batch(engine, order)

    def _prepare(self) -> ImageEngine | None:
        begin = self._first_order()
        try:
            engine = self._load(self._report)
            engine.warm(self._report)
            costs = self._measure(engine) if begin.measure else ()
        except _HungUpError:
            raise
        except LOADING_ERRORS as error:
            self._send(CannotLoad(type(error).__name__, str(error)))
        except Exception as error:  # the front decides what becomes of it  # noqa: BLE001
            _log.error("model failed", exc_info=error)
            self._send(CannotLoad(type(error).__name__, None))
        else:
            self._count_lookups(engine)  # those of warming and measuring count for nobody
            self._send(Ready(engine.info, costs, adapters_of(engine)))
            return engine
        return None

    def _first_order(self) -> Begin:
        try:
            begin: Begin = channel.receive(self._stream)
        except (EOFError, OSError):
            raise _HungUpError from None
        return begin

    def _measure(self, engine: ImageEngine) -> tuple[Cost, ...]:
        self._report(MEASURING, 0.0)
        return measure_costs(engine, self._batches)

    def _report(self, stage: str, fraction: float) -> None:
        self._send(Loading(stage, fraction))

    def _read(self, engine: ImageEngine) -> None:
        with contextlib.suppress(EOFError, OSError, _HungUpError):
            while True:
                match channel.receive(self._stream):
                    case Forget(batch, job):
                        self._forgotten.add((batch, job))
                    case Validate(call, request):
                        self._send(Answered(call, _refusal(lambda: engine.validate(request))))
                    case ChangeAdapter() as change:
                        self._changes.put(change)
                    case order:
                        self._orders.put(order)
        self._hung_up.set()
        self._orders.put(None)
        self._on_hang_up()

    def _draw_batch(self, engine: ImageEngine, order: Draw) -> None:
        started = time.perf_counter()
        drawn = self._draw(engine, order.batch, order.tasks)
        seconds = time.perf_counter() - started
        self._send(Finished(order.batch, drawn, seconds, _gpu_bytes(), self._count_lookups(engine)))
        self._forgotten = {entry for entry in self._forgotten if entry[0] > order.batch}

    def _count_lookups(self, engine: ImageEngine) -> tuple[int, int]:
        statistics = getattr(engine, "cache_statistics", None)
        total = (statistics.hits, statistics.misses) if statistics else (0, 0)
        before, self._lookups = self._lookups, total
        return total[0] - before[0], total[1] - before[1]

    def _draw(self, engine: ImageEngine, batch: int, tasks: Sequence[Task]) -> int:
        """Draw tasks together, or in ever smaller parts if that fails; the number of images."""
        wanted = list(self._wanted(batch, tasks))
        if not wanted:
            return 0
        try:
            generated = engine.generate([task.request for task in wanted])
        except Exception as error:  # it belongs to a request, or to none of them  # noqa: BLE001
            return self._recover(engine, batch, wanted, error)
        self._deliver(wanted, generated)
        return len(wanted)

    def _wanted(self, batch: int, tasks: Sequence[Task]) -> Iterator[Task]:
        for task in tasks:
            if (batch, task.job) in self._forgotten or self._hung_up.is_set():
                self._send(NotDrawn(task.job, dropped=True))
            else:
                yield task

    def _recover(self, engine: ImageEngine, batch: int, tasks: list[Task], error: Exception) -> int:
        if _is_broken(error):
            raise BrokenEngineError from error
        if len(tasks) == 1:
            refusal = str(error) if isinstance(error, InvalidRequestError) else None
            if refusal is None:
                _log.error("cannot draw", job=tasks[0].job, exc_info=error)
            self._send(NotDrawn(tasks[0].job, refusal))
            return 0
        parts = [[task] for task in tasks]
        if _is_out_of_memory(error):
            _free_memory()
            half = len(tasks) // 2
            parts = [tasks[:half], tasks[half:]]
        _log.warning("batch failed, trying its parts", size=len(tasks), error=type(error).__name__)
        return sum(self._draw(engine, batch, part) for part in parts)

    def _deliver(self, tasks: Sequence[Task], generated: GeneratedBatch) -> None:
        for task, pixels in zip(tasks, generated.images, strict=True):
            if self._hung_up.is_set():  # the slot may belong to another engine's job by now
                raise _HungUpError
            self._arena.write_pixels(task.slot, pixels)
            self._send(Drawn(task.job, generated.times, len(tasks)))

    def _change_adapters(self, engine: Any) -> None:
        with contextlib.suppress(_HungUpError):
            while True:
                self._change_adapter(engine, self._changes.get())
                self._changes.task_done()

    def _change_adapter(self, engine: Any, order: ChangeAdapter) -> None:
        def change() -> None:
            if not hasattr(engine, "load_adapter"):
                raise InvalidRequestError("This engine takes no adapters.")
            if order.source is None:
                engine.unload_adapter(order.name)
            else:
                engine.load_adapter(order.name, order.source)

        self._send(Answered(order.call, _refusal(change), adapters_of(engine)))

    def _send(self, message: object) -> None:
        try:
            with self._sending:
                channel.send(self._stream, message)
        except OSError:
            raise _HungUpError from None


def adapters_of(engine: object) -> tuple[str, ...]:
    """The names of the adapters that an engine has loaded; none if it knows no adapters."""
    return tuple(getattr(engine, "adapters", ()))


def _refusal(action: Callable[[], None]) -> str | None:
    try:
        action()
    except InvalidRequestError as error:
        return str(error)
    except Exception as error:  # it must not end the thread that reads  # noqa: BLE001
        _log.error("unexpected failure", exc_info=error)
        return "The model failed on this request unexpectedly; the server's log says why."
    return None


# By name, because torch is not imported for engines that do without it.
def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def _is_broken(error: Exception) -> bool:
    """Whether the GPU's context is lost, so that everything after would fail as well."""
    return isinstance(error, BrokenEngineError) or type(error).__name__ == "AcceleratorError"


def _free_memory() -> None:
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _gpu_bytes() -> tuple[int, int] | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
