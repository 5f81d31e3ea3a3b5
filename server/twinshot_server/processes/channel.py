"""Messages over a stream socket: a length and a pickle, between processes of one server only."""

from __future__ import annotations

import asyncio
import io
import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")
_OWN = ("twinshot_engine.", "twinshot_server.")


class ForeignMessageError(EOFError):
    """A message holds what is none of ours, so the other end is not to be listened to any more."""


class _Reader(pickle.Unpickler):
    """Makes objects of our own classes only.

    Others might import anything: a version number that is one of torch's own strings would bring all of torch
    into the front.
    """

    def find_class(self, module_name: str, global_name: str) -> Any:
        if not module_name.startswith(_OWN):
            raise ForeignMessageError(f"a message holds a {module_name}.{global_name}")
        return super().find_class(module_name, global_name)


def send(stream: socket.socket, message: object) -> None:
    """Write one message to a blocking socket. Raises OSError if the other end is gone."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    stream.sendall(_LENGTH.pack(len(body)) + body)


def receive(stream: socket.socket) -> Any:
    """Read one message from a blocking socket. Raises EOFError if the other end is gone."""
    (length,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    return _Reader(io.BytesIO(_read(stream, length))).load()


def _read(stream: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = stream.recv(size - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


class Channel:
    """The front's end of a socket, on the event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, stream: socket.socket) -> Channel:
        """Take over a connected socket."""
        return cls(*await asyncio.open_connection(sock=stream))

    def send(self, message: object) -> None:
        """Queue one message; it is lost without an error if the other end is gone."""
        body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._writer.write(_LENGTH.pack(len(body)) + body)

    async def receive(self) -> Any:
        """The next message. Raises EOFError if the other end is gone, or says what it must not."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            return _Reader(io.BytesIO(await self._reader.readexactly(length))).load()
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EOFError from None

    def close(self) -> None:
        """Hang up, which ends the other end's reading."""
        self._writer.close()
