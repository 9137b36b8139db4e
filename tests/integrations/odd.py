"""Servers that are no service of asyncdiff, or one that breaks off."""

import contextlib
import socket
import threading
from collections.abc import Iterator

from tests.serving.stand_ins import SECONDS


class Odd:
    """Answers every connection with the same bytes.

    Attributes:
        address: of its root.
        heard: what each connection has said.
    """

    def __init__(self, answer: bytes | None) -> None:
        self.heard: list[bytes] = []
        self._answer = answer
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listening.close()
        for connection in self._held:
            connection.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                connection, _ = self._listening.accept()
                connection.settimeout(SECONDS)
                self.heard.append(connection.recv(65536))
                if self._answer is None:
                    self._held.append(connection)
                    continue
                connection.sendall(self._answer)
                connection.close()


@contextlib.contextmanager
def odd(answer: bytes | None) -> Iterator[Odd]:
    """One that says so, or, with None, nothing."""
    own = Odd(answer)
    try:
        yield own
    finally:
        own.close()


def answer(body: bytes, kind: str = "application/json", status: str = "200 OK", more: str = "") -> bytes:
    """A whole one, as HTTP has it."""
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def broken_stream(*events: bytes) -> bytes:
    """In chunks, of which the last is not whole."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events) + b"ff\r\nevent: x\n"
