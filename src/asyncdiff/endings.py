"""How what runs in other processes may end early, as those know it who have started them."""

import signal

from asyncdiff.errors import AsyncDiffError, ConfigurationError, LabelError, ModelError, SplitError

# What is wrong with what was asked for, in words for whoever asked.
BAD_INPUT = (ConfigurationError, SplitError, LabelError, ModelError)


class WorkerFailedError(Exception):
    """A process failed; the message holds its own traceback."""

    def __init__(self, rank: int, exit_code: int, message: str) -> None:
        super().__init__(f"rank {rank} failed:\n{message}")
        self.was_interrupted = exit_code == -signal.SIGINT


class RefusedError(AsyncDiffError):
    """A process found that what is asked for cannot be done; the message says why."""


class SignalledError(Exception):
    """This process was told to end by a signal, and has ended the others."""

    def __init__(self, by: signal.Signals) -> None:
        super().__init__(f"ended by {by.name}")
        self.by = by
