"""What a service of asyncdiff can be asked for."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .address import Address
from .errors import FormError, ServiceError
from .exchange import Exchange, Head
from .keys import advice, key_for
from .news import Failure, Picture, Step, news, readable, sentence_of
from .patience import Patience, TooLongError

Progress = Callable[[int, int | None], None]
"""Told of each step: how many are done, and of how many, if that is known."""

_SECONDS_TO_ANSWER = 30.0
_SECONDS_OF_SILENCE = 60.0  # while it draws, the service says every 10 s that it is still there
_SECONDS_TO_COME_BACK = 60.0
_SECONDS_BETWEEN_LOOKS = 1.0
_TOO_MANY = 429
_NO_KEY = 401


@dataclass(frozen=True)
class Model:
    """What a service draws with.

    Attributes:
        since: when the service was started, in seconds since 1970.
    """

    name: str
    since: int


@dataclass(frozen=True)
class Drawn:
    """What a service has drawn.

    Attributes:
        pictures: of one request, in its order; not empty.
        seconds: from the request to the last picture.
    """

    pictures: tuple[Picture, ...]
    seconds: float


def nobody_interrupts() -> None:
    """For whoever waits to the end."""


class Client:
    """Of one service.

    Args:
        check: called several times a second while something is waited for; what it raises ends the waiting, and the
            drawing.
    """

    def __init__(self, address: Address, check: Callable[[], None] = nobody_interrupts) -> None:
        self._address = address
        self._check = check

    def model(self, seconds: float = _SECONDS_TO_ANSWER) -> Model:
        """What the service draws with.

        Args:
            seconds: that it may take to answer.

        Raises:
            ServiceError: it has not said. So in those below.
            InputError: the environment has no proper key. So in those below.
        """
        head, body = self._asked("/v1/models", seconds)
        try:
            with readable():
                (told,) = json.loads(body)["data"]
                return Model(str(told["id"]), int(told["created"]))
        except FormError:
            raise self._error(head, body) from None

    def wait_until_it_can_draw(self) -> None:
        """Return at once, but where none of the service's replicas is there: one may be starting anew."""
        patience = Patience(_SECONDS_TO_COME_BACK, self._check)
        while (why := self._why_it_cannot_draw()) is not None:
            try:
                patience.sleep(_SECONDS_BETWEEN_LOOKS)
            except TooLongError:
                raise ServiceError(f"the service at {self._address} cannot draw: {why}") from None

    def draw(self, request: Mapping[str, Any], seconds: float, progress: Progress) -> Drawn:
        """Pictures for a request in the service's words.

        Where too many wait already, it is sent again when the service says.

        Args:
            seconds: that all of it may take.
        """
        patience = Patience(seconds, self._check)
        while True:
            try:
                return self._drawn(request, patience, progress)
            except ServiceError as error:
                # Whatever else has failed would fail again, or take one more replica with it.
                if error.status != _TOO_MANY:
                    raise
                pause = error.retry_after or _SECONDS_BETWEEN_LOOKS
                if pause >= patience.left:
                    raise ServiceError(f"{error} (no place was free within {seconds:g} s)", error.status) from error
            patience.sleep(pause)

    def _why_it_cannot_draw(self) -> str | None:
        head, body = self._asked("/health", _SECONDS_TO_ANSWER)
        try:
            with readable():
                health = json.loads(body)
                if health["status"] != "unavailable":
                    return None
                return "; ".join(_told_of(number, replica) for number, replica in enumerate(health["replicas"]))
        except FormError:
            raise self._error(head, body) from None

    def _asked(self, path: str, seconds: float) -> tuple[Head, bytes]:
        patience = Patience(seconds, self._check)
        with Exchange(self._address, path, None, key_for(self._address), seconds) as exchange:
            return exchange.head(patience), exchange.body(patience)

    def _drawn(self, request: Mapping[str, Any], patience: Patience, progress: Progress) -> Drawn:
        body = json.dumps({**request, "stream": True, "response_format": "b64_json"}).encode()
        begin, pictures = time.monotonic(), []
        key = key_for(self._address)
        with Exchange(self._address, "/v1/images/generations", body, key, _SECONDS_OF_SILENCE) as exchange:
            head = exchange.head(patience)
            if head.kind != "text/event-stream":
                raise self._error(head, exchange.body(patience))
            try:
                # To the end of the stream: a connection that is closed before it counts as given up.
                for told in news(exchange.lines(patience)):
                    if isinstance(told, Failure):
                        raise ServiceError(told.sentence)
                    if isinstance(told, Step):
                        progress(told.done, told.total)
                    else:
                        pictures.append(told)
            except FormError:
                raise self._stranger() from None
        if len(pictures) != request.get("n", 1):
            raise ServiceError(f"the connection to the service at {self._address} broke before all pictures were there")
        return Drawn(tuple(pictures), time.monotonic() - begin)

    def _error(self, head: Head, body: bytes) -> ServiceError:
        try:
            with readable():
                sentence = sentence_of(json.loads(body))
        except FormError:
            return self._stranger()
        if head.status == _NO_KEY:
            sentence = f"the service at {self._address} says: {sentence}; {advice(self._address)}"
        return ServiceError(sentence, head.status, head.retry_after)

    def _stranger(self) -> ServiceError:
        return ServiceError(f"what answers at {self._address} does not speak as a service of asyncdiff does")


def _told_of(number: int, replica: Mapping[str, Any]) -> str:
    why = f" ({replica['error']})" if "error" in replica else ""
    return f"replica {number} is {replica['state']}{why}"
