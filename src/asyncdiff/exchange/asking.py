"""Ask a store with a time limit: only its waits have one, and one whose process has stopped never answers."""

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

from asyncdiff.errors import ExchangeError

_Answer = TypeVar("_Answer")


def ask_within(seconds: float, ask: Callable[[], _Answer]) -> _Answer:
    """What `ask` returns, or raises, if it does so in time.

    Raises:
        ExchangeError: it does not.
    """
    answers: list[_Answer] = []
    failures: list[RuntimeError] = []

    def run() -> None:
        try:
            answers.append(ask())
        except RuntimeError as error:
            failures.append(error)

    asking = Thread(target=run, name="asyncdiff store", daemon=True)
    asking.start()
    asking.join(seconds)
    for failure in failures:
        raise failure
    for answer in answers:
        return answer
    raise ExchangeError("the store on which the ranks meet does not answer")
