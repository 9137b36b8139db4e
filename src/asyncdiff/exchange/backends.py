"""What can move tensors between ranks here. Asked where settings are read, often without any torch to be imported."""

from asyncdiff.errors import ConfigurationError


def check_backend(backend: str | None) -> None:
    """Refuse what torch.distributed has no backend for, before any rank waits for another.

    Raises:
        ConfigurationError: there is none of that name here.
    """
    if backend is None:
        return
    import torch.distributed as dist

    # It may be told device by device: "cpu:gloo,cuda:nccl".
    for name in (part.rpartition(":")[2] for part in backend.split(",")):
        if not dist.is_backend_available(name.lower()):
            raise ConfigurationError(
                f"backend={backend!r}: torch.distributed knows no {name!r} here; leave backend out, or use 'gloo'"
            )
