"""`asyncdiff generate --server`: a service makes it."""

import io
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from asyncdiff.commands.terminal import exit_codes, fail, stdout
from asyncdiff.commands.writing import write_out
from asyncdiff.errors import ConfigurationError
from asyncdiff.made.media import Made
from asyncdiff.model_files import DEMO_MODELS
from asyncdiff.request.files import read_pictures
from asyncdiff.request.words import Request
from asyncdiff.serving.client import Answer, Client, ServiceError

_KEY = "ASYNCDIFF_API_KEY"


def ask(
    server: str, model: str, request: Request, seed: int, settings: Mapping[str, Any], out: Path | None, fps: int
) -> None:
    """Have the service make it, and write the files."""
    try:
        with exit_codes("the service draws no more of it"):
            client = Client(server, os.environ.get(_KEY))
            own = client.about()["id"]
            if model not in (own, DEMO_MODELS[0]):
                raise ConfigurationError(f"--model: the service has {own!r}")
            with Progress(console=Console(stderr=True), transient=True) as bars:
                bar = bars.add_task(own, total=None)
                answer = client.draw(
                    request, seed, settings, lambda done, total: bars.update(bar, completed=done, total=total), fps
                )
    except ServiceError as error:
        fail(f"--server: {error}.")
    files = _written(answer, out, fps)
    kinds = ", ".join(f"{count} {kind}" for kind, count in answer.steps.items() if count)
    stdout.print(
        f"{', '.join(map(str, files))}: {own} at {server} in {answer.seconds:.2f} s; steps: {kinds}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _written(answer: Answer, out: Path | None, fps: int) -> list[Path]:
    """Pictures in the format that is asked for; a video as it came, where that is the one."""
    if answer.form == "png":
        return write_out(Made(tuple(Image.open(io.BytesIO(file)) for file in answer.files)), out, fps)
    place = Path(f"out.{answer.form}") if out is None else out
    if place.suffix.lower() == f".{answer.form}":
        try:
            place.write_bytes(answer.files[0])
        except OSError as error:
            fail(f"--out {place} could not be written: {error}")
        return [place]
    with tempfile.TemporaryDirectory(prefix="asyncdiff-") as folder:
        came = Path(folder, f"came.{answer.form}")
        came.write_bytes(answer.files[0])
        return write_out(Made(videos=(read_pictures("the video", came),)), place, fps)
