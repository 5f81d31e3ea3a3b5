"""What processes are joined by: messages over a socket, memory in slots, and the choice of a GPU."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from enum import Enum
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from twinshot_server import gpus
from twinshot_server.images import ImageFormat
from twinshot_server.loading import _own_device, engine_config
from twinshot_server.processes import channel
from twinshot_server.processes.arena import SLOT_BYTES, Arena
from twinshot_server.processes.encoder_worker import run_encoder
from twinshot_server.processes.messages import Encode
from twinshot_server.settings import Settings


def test_messages_of_any_length_pass_both_ways() -> None:
    async def front(ours: socket.socket) -> list[object]:
        opened = await channel.Channel.open(ours)
        for message in messages:
            opened.send(message)
        echoed = [await opened.receive() for _ in messages]
        opened.close()
        return echoed

    def echo() -> None:
        with theirs:
            for _ in messages:
                channel.send(theirs, channel.receive(theirs))

    messages: list[object] = ["", "ä" * 300_000, {"a": [1, 2.5, None]}, b"\0" * 70_000]
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=echo)
    thread.start()
    assert asyncio.run(front(ours)) == messages
    thread.join(10)


@pytest.mark.parametrize("sent", [b"", b"\0\0", b"\0\0\0\x05abc"])
def test_the_end_of_the_other_end_is_noticed(sent: bytes) -> None:
    async def front(ours: socket.socket) -> None:
        opened = await channel.Channel.open(ours)
        with pytest.raises(EOFError):
            await opened.receive()
        opened.close()

    for read in (lambda ours: asyncio.run(front(ours)), channel.receive):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(sent)
            theirs.shutdown(socket.SHUT_WR)
            if read is channel.receive:
                with pytest.raises(EOFError):
                    read(ours)
            else:
                read(ours)


def test_foreign_objects_are_not_made() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        channel.send(theirs, torch.__version__)  # a string of torch's own
        with pytest.raises(channel.ForeignMessageError, match="torch"):
            channel.receive(ours)
        body = b"cos\nsystem\n(S'true'\ntR."
        theirs.sendall(len(body).to_bytes(4, "big") + body)
        with pytest.raises(channel.ForeignMessageError, match="system"):
            channel.receive(ours)


@pytest.mark.parametrize("image_format", ImageFormat)
def test_orders_pass_on_pythons_that_pickle_enumerations_by_getattr(
    image_format: ImageFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As 3.11.0 to 3.11.3 do, Debian 12's own among them.
    monkeypatch.setattr(Enum, "__reduce_ex__", lambda self, _protocol: (getattr, (type(self), self.name)))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        order = Encode(1, 0, (64, 32), image_format, None)
        channel.send(theirs, order)
        assert channel.receive(ours) == order


def test_slots_are_apart_and_shared_by_the_descriptor() -> None:
    arena = Arena(3)
    other = Arena(3, os.dup(arena.descriptor))
    pictures = [np.full((48, 64, 3), value, dtype=np.uint8) for value in (1, 2, 3)]
    for slot, pixels in enumerate(pictures):
        arena.write_pixels(slot, pixels)
    assert all(np.array_equal(other.pixels(slot, (64, 48)), pictures[slot]) for slot in range(3))
    other.write_file(1, b"a file")
    assert arena.read_file(1, 6) == b"a file"
    assert np.array_equal(arena.pixels(2, (64, 48)), pictures[2])
    other.close()
    arena.close()


def test_what_does_not_fit_into_a_slot_is_refused() -> None:
    arena = Arena(1)
    with pytest.raises(ValueError, match="4096x4096 pixels do not fit"):
        arena.pixels(0, (4096, 4096))
    with pytest.raises(ValueError, match="does not fit"):
        arena.write_file(0, b"x" * (SLOT_BYTES + 1))
    arena.close()


def test_the_encoder_survives_what_it_cannot_encode() -> None:
    arena, (ours, theirs) = Arena(2), socket.socketpair()
    thread = threading.Thread(target=run_encoder, args=[theirs, arena, 2])
    thread.start()
    channel.send(ours, Encode(1, 0, (9000, 9000), ImageFormat.PNG, None))
    assert channel.receive(ours).length is None
    arena.write_pixels(1, np.zeros((8, 8, 3), dtype=np.uint8))
    channel.send(ours, Encode(2, 1, (8, 8), ImageFormat.JPEG, None))
    encoded = channel.receive(ours)
    assert arena.read_file(1, encoded.length).startswith(b"\xff\xd8")
    ours.close()
    thread.join(10)
    assert not thread.is_alive()
    theirs.close()
    arena.close()


@pytest.mark.parametrize(
    ("device", "replicas", "replica", "gpus", "expected"),
    [
        ("auto", 2, 0, 4, "cuda:0"),
        ("auto", 4, 3, 2, "cuda:1"),
        ("cuda", 2, 1, 2, "cuda:1"),
        ("auto", 1, 0, 2, "auto"),
        ("auto", 2, 1, 0, "auto"),
        ("cpu", 2, 1, 2, "cpu"),
        ("cuda:1", 2, 0, 2, "cuda:1"),
    ],
)
def test_each_replica_has_a_gpu_of_its_own(
    device: str, replicas: int, replica: int, gpus: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert _own_device(Settings(device=device, replicas=replicas, replica=replica)) == expected


class MadeUpDriver:
    """libcuda with so many GPUs, or one that cannot start."""

    def __init__(self, count: int, fault: int = 0) -> None:
        self._count = count
        self._fault = fault

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's name
        return self._fault

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802 - the driver's name
        count._obj.value = self._count
        return 0


@pytest.mark.parametrize(
    ("replicas", "device", "driver", "expected"),
    [
        ("auto", "auto", MadeUpDriver(8), 8),
        ("auto", "cuda", MadeUpDriver(2), 2),
        ("auto", "cuda:1", MadeUpDriver(2), 1),
        ("auto", "cpu", MadeUpDriver(2), 1),
        ("auto", "auto", MadeUpDriver(0), 1),
        ("auto", "auto", MadeUpDriver(2, fault=100), 1),
        ("auto", "auto", None, 1),
        ("3", "cpu", None, 3),
    ],
)
def test_automatic_replicas_are_one_a_gpu(
    replicas: Any, device: str, driver: MadeUpDriver | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(_name: str) -> MadeUpDriver:
        if driver is None:
            raise OSError("no such file")
        return driver

    monkeypatch.setattr(gpus.ctypes, "CDLL", load)
    assert gpus.count_replicas(Settings(device=device, replicas=replicas)) == expected


@pytest.mark.parametrize("value", ["0", "65", "two", "-1", "1.5", ""])
def test_other_replicas_are_refused_in_words(value: Any) -> None:
    with pytest.raises(ValidationError, match="not 'auto' or a whole number from 1 to 64"):
        Settings(replicas=value)


@pytest.mark.parametrize(
    ("replicas", "threads", "expected"),
    [(1, None, None), (2, None, 4), (3, None, 2), (16, None, 1), (2, 5, 5)],
)
def test_replicas_share_the_cores(
    replicas: int, threads: int | None, expected: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert engine_config(Settings(device="cpu", replicas=replicas, threads=threads)).threads == expected
