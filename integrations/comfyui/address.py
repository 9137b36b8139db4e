"""Where a service is."""

from dataclasses import dataclass
from urllib.parse import urlsplit

from .errors import InputError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Address:
    """Of a service's root.

    Attributes:
        scheme: "http" or "https".
        path: of the root, without a slash at its end: "" but for a service behind a proxy.
    """

    scheme: str
    host: str
    port: int
    path: str = ""

    @classmethod
    def of(cls, text: str) -> "Address":
        """The address that is written so; the `/v1` at its end, with which the service tells its own, may be left out.

        Raises:
            InputError: it is none.
        """
        try:
            parts = urlsplit(text.strip())
            scheme, host, port = parts.scheme, parts.hostname, parts.port
            if host:
                host.encode("idna")
        except ValueError:  # (of UnicodeError too: a name that is too long)
            raise _no_address(text) from None
        has_more = parts.username is not None or parts.query or parts.fragment or not _is_plain(parts.path)
        if scheme not in _PORTS or not host or port == 0 or has_more:
            raise _no_address(text)
        return cls(scheme, host, port or _PORTS[scheme], parts.path.rstrip("/").removesuffix("/v1").rstrip("/"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}{self.path}"


def _is_plain(path: str) -> bool:
    return path.isascii() and path.isprintable() and " " not in path


def _no_address(text: str) -> InputError:
    return InputError(f"the address of the service must be like http://127.0.0.1:8000, not {text!r}")
