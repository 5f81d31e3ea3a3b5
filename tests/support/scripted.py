"""A server on loopback that does what its script says, down to the byte: wrong, slow, half or hostile."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Script = Callable[[socket.socket], None]


class Scripted:
    """Where it listens, and how many connections came."""

    def __init__(self, listener: socket.socket, scripts: tuple[Script, ...]) -> None:
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.connections = 0
        self._listener = listener
        self._scripts = scripts

    def serve(self) -> None:
        """Give each connection a thread and its script, the last one to all that come later."""
        threads = []
        with contextlib.suppress(OSError):  # the listener is closed at the end
            while True:
                connection, _ = self._listener.accept()
                script = self._scripts[min(self.connections, len(self._scripts) - 1)]
                self.connections += 1
                threads.append(threading.Thread(target=_play, args=(connection, script)))
                threads[-1].start()
        for thread in threads:
            thread.join(10)


@contextmanager
def scripted(*scripts: Script) -> Iterator[Scripted]:
    """The server; a script gets a connection whose request has been read."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Scripted(listener, scripts)
        thread = threading.Thread(target=server.serve)
        thread.start()
        try:
            yield server
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def sending(*parts: bytes) -> Script:
    """The script that sends this and hangs up."""
    return lambda connection: [connection.sendall(part) for part in parts] and None


def read_request(connection: socket.socket) -> bytes:
    """A request as it came, with a body as long as its Content-Length says."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, body = received.partition(b"\r\n\r\n")
    lengths = [
        line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    ]
    while len(body) < int(lengths[0] if lengths else 0):
        body += _receive(connection)
    return head + b"\r\n\r\n" + body


def _receive(connection: socket.socket) -> bytes:
    chunk = connection.recv(65536)
    if not chunk:
        raise ConnectionError
    return chunk


def _play(connection: socket.socket, script: Script) -> None:
    with connection, contextlib.suppress(OSError):  # clients may leave
        connection.settimeout(10)
        read_request(connection)
        script(connection)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):  # closing with unread bytes would reset what was sent
            pass
