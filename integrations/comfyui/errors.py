"""What goes wrong, as a sentence for whoever looks at the node."""


class InputError(ValueError):
    """Something that was typed into a node, or into the environment, cannot be used."""


class ServiceError(RuntimeError):
    """The service has refused, has failed, or is not there.

    Args:
        message: the service's own sentence, where there is one.
        status: HTTP's number; 0 where no answer came.
        retry_after: seconds after which the same may succeed.
    """

    def __init__(self, message: str, status: int = 0, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class FormError(ValueError):
    """What has answered does not speak as a service of asyncdiff does."""
