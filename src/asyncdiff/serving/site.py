"""The page of the service: some files of the package, read once. They hold nothing of a request or of the service."""

from importlib.resources import files
from pathlib import PurePath

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = "page"
_FIRST = "index.html"
_KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS = {
    # Nothing from another address, nothing that stands in the page itself, no frame around it, no form sent anywhere.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Site:
    """The page's routes.

    Attributes:
        routes: one for each file.
        paths: of the routes. Whoever comes may read them.
    """

    def __init__(self) -> None:
        texts = {file.name: file.read_bytes() for file in files(__package__).joinpath(_FOLDER).iterdir()}
        self.routes = [self._route(name, text) for name, text in texts.items()]
        self.paths = frozenset(route.path for route in self.routes)

    def _route(self, name: str, text: bytes) -> Route:
        kind = f"{_KINDS[PurePath(name).suffix]}; charset=utf-8"

        async def read(request: Request) -> Response:
            del request
            return Response(text, headers={**_HEADERS, "Content-Type": kind})

        return Route("/" if name == _FIRST else f"/{_FOLDER}/{name}", read, methods=["GET"])
