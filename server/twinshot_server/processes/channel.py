"""Messages over a stream socket: a length and a pickle, between processes of one server only."""

from __future__ import annotations

import asyncio
import pickle
import socket
import struct
from typing import Any

_LENGTH = struct.Struct("!I")


def send(stream: socket.socket, message: object) -> None:
    """Write one message to a blocking socket. Raises OSError if the other end is gone."""
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    stream.sendall(_LENGTH.pack(len(body)) + body)


def receive(stream: socket.socket) -> Any:
    """Read one message from a blocking socket. Raises EOFError if the other end is gone."""
    (length,) = _LENGTH.unpack(_read(stream, _LENGTH.size))
    # The other end is a process that this server started, over a socket without a name.
    return pickle.loads(_read(stream, length))  # noqa: S301


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
        """The next message. Raises EOFError if the other end is gone."""
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            return pickle.loads(await self._reader.readexactly(length))  # noqa: S301 - see `receive`
        except (asyncio.IncompleteReadError, ConnectionError):
            raise EOFError from None

    def close(self) -> None:
        """Hang up, which ends the other end's reading."""
        self._writer.close()
