"""The command `asyncdiff serve`."""

import threading
from pathlib import Path
from typing import Annotated

import typer

from asyncdiff.commands.asking import LoraFiles, read_loras
from asyncdiff.commands.checks import check_weights
from asyncdiff.commands.options import AllowPickle, Model, Steps, Weights, with_settings
from asyncdiff.commands.terminal import ended_by_sigterm, exit_codes, fail, refuse, stdout
from asyncdiff.errors import AsyncDiffError, ExchangeError
from asyncdiff.request.words import read_size
from asyncdiff.serving.keys import read_keys
from asyncdiff.serving.limits import Limits
from asyncdiff.serving.orders import Pipeline
from asyncdiff.serving.wire import Service
from asyncdiff.settings import Settings, in_options
from asyncdiff.workers.fitting import settings_for

_LOOPBACK = "127.0.0.1"
_MOST = Limits()


@with_settings
def serve(
    devices: Annotated[
        int, typer.Option(min=1, help="Processes of each replica: a GPU each, or a CPU thread each.")
    ] = 2,
    settings: Settings = Settings(),
    model: Model = "demo-unet",
    replicas: Annotated[
        int, typer.Option(min=1, help="Pipelines that draw side by side, one request each at a time.")
    ] = 1,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where the service listens.")] = 8000,
    host: Annotated[
        str | None,
        typer.Option(
            help="An address of this machine on which others reach it; needs --api-key-file. [default: the loopback]"
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", readable=False, help="Keys, one in a line; who has none is not answered."),
    ] = None,
    steps: Steps = 50,
    max_steps: Annotated[int, typer.Option(min=1, help="Of a request.")] = _MOST.steps,
    max_size: Annotated[str, typer.Option(help="Of a picture, in pixels.")] = str(_MOST.size),
    max_n: Annotated[int, typer.Option(min=1, help="Pictures of a request.")] = _MOST.pictures,
    max_frames: Annotated[int, typer.Option(min=1, help="Frames of a video.")] = _MOST.frames,
    max_prompt: Annotated[int, typer.Option(min=1, help="Characters of a prompt.")] = _MOST.prompt,
    max_seconds: Annotated[float, typer.Option(help="From a request to its answer.")] = _MOST.seconds,
    queue: Annotated[int, typer.Option(min=1, help="Requests that may wait; more are told to come later.")] = (
        _MOST.waiting
    ),
    dtype: Weights = None,
    lora: LoraFiles = None,
    allow_pickle: AllowPickle = False,
) -> None:
    """Draw pictures and videos for whoever asks over HTTP, in the shape of OpenAI's API, or on the service's page.

    Examples:

    - `asyncdiff serve` – the demo UNet on two processes, for this machine alone

    - `asyncdiff serve --model ./my-pipeline --devices 4 --replicas 2` – two pipelines on four devices each

    - `asyncdiff serve --host 0.0.0.0 --api-key-file keys.txt` – for others too

    Ctrl-C ends it. The steps, and the settings of asyncdiff, are those of requests that do not say others.

    Exit codes: 0 fine, 1 a process failed, 2 bad usage, or a model that cannot be loaded or divided so, 130 interrupted
    (Ctrl-C), 143 ended (SIGTERM).
    """
    if host is not None and api_key_file is None:
        refuse("--host: who can reach the service could use it; give --api-key-file, or leave --host out.")
    check_weights(model, allow_pickle)
    given = {name: value for name, value in settings.arguments().items() if value != getattr(Settings(), name)}
    try:
        keys = () if api_key_file is None else read_keys(api_key_file)
        limits = Limits(max_steps, read_size("--max-size", max_size), max_n, max_frames, max_prompt, queue, max_seconds)
        settings_for(devices, given)
        service = Service(_name(model), devices, given, limits.check_steps(steps), limits)
    except AsyncDiffError as error:
        refuse(f"{in_options(str(error), '--')}.")
    pipeline = Pipeline(_place(model), devices, dtype.value if dtype else None, allow_pickle, given, read_loras(lora))
    _run(pipeline, replicas, service, host or _LOOPBACK, port, keys)


def _run(pipeline: Pipeline, replicas: int, service: Service, host: str, port: int, keys: tuple[bytes, ...]) -> None:
    try:
        from asyncdiff.serving.service import Plan, Running
    except ImportError as error:
        refuse(f"the service needs Ray Serve, which cannot be imported ({error}): pip install asyncdiff[serve]")
    plan = Plan(pipeline, replicas, service, host, port, keys)
    with exit_codes(), ended_by_sigterm():
        try:
            with Running(plan):
                at = f"http://{f'[{host}]' if ':' in host else host}:{port}"
                told = f"{service.model} is served at {at}/v1, with a page at {at}/; Ctrl-C ends it."
                stdout.print(told, markup=False, soft_wrap=True)
                threading.Event().wait()
        except ExchangeError as error:
            fail(str(error))


def _place(model: str) -> str:
    """The model as the replicas find it, whatever folder they are in."""
    return str(Path(model).absolute()) if Path(model).is_dir() else model


def _name(model: str) -> str:
    """What the model is called by those who ask: of a folder nothing but its name."""
    return Path(model).absolute().name if Path(model).is_dir() else model
