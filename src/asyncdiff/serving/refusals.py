"""What is said to whoever asked for what cannot be: OpenAI's shape, and our own sentences. Pure."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, TypeVar

from asyncdiff.errors import ConfigurationError, SplitError
from asyncdiff.plan.numbers import shown
from asyncdiff.request.signature import near

_Value = TypeVar("_Value")


class RequestError(Exception):
    """A request that is not met.

    Args:
        message: a sentence for whoever has asked.
        status: HTTP's number.
        param: the part of the request that is wrong.
        code: a word for programs.
        retry_after: seconds after which the same may succeed.
    """

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, code: str = "", retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """As OpenAI has it."""
        kind = "invalid_request_error" if self.status < 500 and self.status != 429 else "server_error"
        kind = "rate_limit_error" if self.status == 429 else kind
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code or None}}


def refuse(message: str, param: str | None = None, code: str = "invalid_value", status: int = 400) -> NoReturn:
    """
    Raises:
        RequestError: always.
    """
    raise RequestError(message, status, param, code)


def checked(check: Callable[..., _Value], param: str | None, *given: Any) -> _Value:
    """What a check returns; the sentence of our own error for whoever has asked.

    Raises:
        RequestError: the check refuses it.
    """
    try:
        return check(*given)
    except (ConfigurationError, SplitError) as error:
        refuse(str(error), param)


def mapping(value: Any, param: str | None = None) -> dict[str, Any]:
    """
    Raises:
        RequestError: it is no object.
    """
    if not isinstance(value, dict):
        refuse(f"{param or 'the request'} must be an object, not {shown(value)}", param)
    return value


def check_names(what: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """
    Raises:
        RequestError: a name is not known.
    """
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        advice = near(unknown, known) or f"it may have {', '.join(known)}"
        refuse(f"{what} has a field {shown(unknown)}, which is not known here; {advice}", unknown, "unknown_field")
