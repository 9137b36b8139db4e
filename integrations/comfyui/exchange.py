"""One request over HTTP, in a thread of its own: whoever waits for its answer can be interrupted at any time."""

import contextlib
import http.client
import queue
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType

from .address import Address
from .errors import ServiceError
from .patience import Patience, TooLongError

_SECONDS_TO_CONNECT = 10.0
_MOST_OF_A_LINE = 256 * 2**20  # bytes; a picture is one line
_MOST_OF_A_BODY = 2**20  # bytes of what is not a stream


@dataclass(frozen=True)
class Head:
    """Of an answer.

    Attributes:
        kind: of its content, without parameters.
        retry_after: seconds, if it says them.
    """

    status: int
    kind: str
    retry_after: float | None


class Exchange:
    """A request that is on its way; the end of `with` closes its connection, however far it is.

    It follows no redirection, so that a key goes to the address that it is meant for and to no other.

    Args:
        path: below the service's root.
        body: JSON to be posted; None for GET.
        silence: seconds without a word from the service, after which the connection counts as broken.
    """

    def __init__(self, address: Address, path: str, body: bytes | None, key: str | None, silence: float) -> None:
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        self._address = address
        self._silence = silence
        self._connection = kind(address.host, address.port, timeout=_SECONDS_TO_CONNECT)
        self._told: queue.SimpleQueue[Head | bytes | ServiceError | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._is_closed = False
        headers = {"Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if key is not None:
            headers["Authorization"] = f"Bearer {key}"
        work = (("GET" if body is None else "POST"), address.path + path, body, headers)
        threading.Thread(target=self._work, args=work, name="asyncdiff-request", daemon=True).start()

    def __enter__(self) -> "Exchange":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. A service that draws for it ends that."""
        with self._lock:
            self._is_closed = True
            if self._socket is not None:
                with contextlib.suppress(OSError):  # it has been closed by the other side
                    self._socket.shutdown(socket.SHUT_RDWR)

    def head(self, patience: Patience) -> Head:
        """Of the answer, as soon as it is there.

        Raises:
            ServiceError: none has come. So in those below.
        """
        told = self._next(patience)
        if not isinstance(told, Head):
            raise self._broken("it was closed before an answer came")
        return told

    def lines(self, patience: Patience) -> Iterator[bytes]:
        """Of the body, after the head."""
        while (told := self._next(patience)) is not None:
            if isinstance(told, bytes):
                yield told

    def body(self, patience: Patience) -> bytes:
        """All of it, after the head."""
        read = bytearray()
        for line in self.lines(patience):
            read += line
            if len(read) > _MOST_OF_A_BODY:
                raise ServiceError(f"what answers at {self._address} says too much to be a service of asyncdiff")
        return bytes(read)

    def _next(self, patience: Patience) -> Head | bytes | None:
        while True:
            try:
                told = self._told.get(timeout=patience.look())
            except queue.Empty:
                continue
            except TooLongError:
                raise ServiceError(
                    f"the service at {self._address} was not done within {patience.seconds:g} s"
                ) from None
            if isinstance(told, ServiceError):
                raise told
            return told

    def _work(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> None:
        """In the thread: what comes is told as it comes, and None at the end, whatever happens."""
        try:
            if not self._connected():
                return
            # A request that is too long is answered, and no longer read, before all of it is sent.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._connection.request(method, path, body, headers)
            with self._connection.getresponse() as response:
                self._told.put(_head_of(response))
                while line := response.readline(_MOST_OF_A_LINE):
                    self._told.put(line)
        except (OSError, http.client.HTTPException) as error:
            self._told.put(self._broken(self._reason(error)))
        except ServiceError as error:
            self._told.put(error)
        finally:
            self._connection.close()
            self._told.put(None)

    def _connected(self) -> bool:
        """Connect; whether somebody still waits for it."""
        try:
            self._connection.connect()
        except OSError as error:
            raise ServiceError(
                f"nobody answers at {self._address} ({error.strerror or error}); is the service started there, as by "
                "'asyncdiff serve'?"
            ) from error
        with self._lock:
            self._socket = self._connection.sock
            self._socket.settimeout(self._silence)
            return not self._is_closed

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"it has said nothing for {self._silence:g} s"
        return str(error) or type(error).__name__

    def _broken(self, reason: str) -> ServiceError:
        return ServiceError(f"the connection to the service at {self._address} broke: {reason}")


def _head_of(response: http.client.HTTPResponse) -> Head:
    after = response.getheader("Retry-After", "")
    return Head(
        response.status,
        response.getheader("Content-Type", "").partition(";")[0].strip().lower(),
        float(after) if after.isascii() and after.isdecimal() else None,
    )
