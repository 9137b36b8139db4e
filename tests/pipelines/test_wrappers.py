"""A pipeline whose denoiser is inside of another module: looked through, or named with what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from peft import get_peft_model
from torch import nn

from asyncdiff import AsyncDiff, ConfigurationError
from tests.processes import run_ranks
from tests.tiny import PIPELINES, run
from tests.tiny.adapters import build_small_unet, denoiser_name, denoiser_of, lora_config


class Around(nn.Module):
    """A user's own: hands calls and questions on."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "net" else getattr(self.net, name)


class Past(Around):
    """Does not call what is in it as a module."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.net.forward(*args, **kwargs)


def put(pipe: DiffusionPipeline, wrapper: nn.Module) -> None:
    setattr(pipe, denoiser_name(pipe), wrapper)


def with_peft(pipe: DiffusionPipeline) -> None:
    torch.manual_seed(0)
    put(pipe, get_peft_model(denoiser_of(pipe), lora_config(pipe)).eval())


def with_own(pipe: DiffusionPipeline) -> None:
    put(pipe, Around(denoiser_of(pipe)))


def with_both(pipe: DiffusionPipeline) -> None:
    with_peft(pipe)
    with_own(pipe)


def attached(pipe: DiffusionPipeline, warmup: int = 2) -> AsyncDiff:
    return AsyncDiff(pipe, warmup=warmup, executor="local", components=2, method="paper")


@pytest.mark.parametrize(
    ("name", "wrap"),
    [
        ("sd15", with_peft),
        pytest.param("flux", with_peft, marks=pytest.mark.whole),
        ("flux", with_own),
        pytest.param("sd15", with_own, marks=pytest.mark.whole),
        pytest.param("sd15", with_both, marks=pytest.mark.whole),
        pytest.param("flux", with_both, marks=pytest.mark.whole),
    ],
)
def test_what_hands_calls_on_is_looked_through(name: str, wrap: Callable[[DiffusionPipeline], None]) -> None:
    """The same as with the denoiser that is in it; put on before it is attached, and after."""
    tiny, build = PIPELINES[name], build_small_unet if name == "sd15" else PIPELINES[name].build
    pipe, later, bare = build(), build(), build()
    for one in (pipe, bare):
        wrap(one)
    inner = denoiser_of(bare)
    while type(inner) is not type(denoiser_of(later)):
        inner = next(inner.children())
    put(bare, inner)
    plain = run(pipe, tiny)
    assert torch.equal(run(bare, tiny), plain)
    with attached(bare):
        expected = run(bare, tiny)
    assert not torch.equal(expected, plain)
    with attached(pipe, warmup=99), pytest.warns(UserWarning, match="accelerates nothing"):
        assert torch.equal(run(pipe, tiny), plain)
    with attached(pipe) as async_diff:
        for _ in range(2):
            assert torch.equal(run(pipe, tiny), expected)
        assert async_diff.report().denoisers[0].counts.rounds >= 3
    assert torch.equal(run(pipe, tiny), plain)
    with attached(later) as async_diff:
        run(later, tiny)
        wrap(later)
        assert torch.equal(run(later, tiny), expected)
        assert async_diff.report().accelerated
    assert torch.equal(run(later, tiny), plain)


@pytest.mark.parametrize("is_attached_first", [False, True])
def test_what_calls_no_module_is_named(is_attached_first: bool) -> None:
    tiny = PIPELINES["flux"]
    pipe = tiny.build()
    if not is_attached_first:
        put(pipe, Past(pipe.transformer))
    with attached(pipe):
        if is_attached_first:
            run(pipe, tiny)
            put(pipe, Past(pipe.transformer))
        with pytest.raises(ConfigurationError, match="is a Past that does not call the FluxTransformer2DModel in it"):
            run(pipe, tiny)
        pipe.transformer = pipe.transformer.net  # what the error says
        run(pipe, tiny)


def refused(pipe: DiffusionPipeline) -> str:
    """The error with which the pipeline is refused, before it is attached and after."""
    messages = []
    wrapper = pipe.unet
    with pytest.raises(ConfigurationError) as caught:
        attached(pipe)
    messages.append(str(caught.value))
    pipe.unet = next(module for module in wrapper.modules() if "down_blocks" in dict(module.named_children()))
    with attached(pipe):
        run(pipe, PIPELINES["sd15"])
        pipe.unet = wrapper
        with pytest.raises(ConfigurationError) as caught:
            run(pipe, PIPELINES["sd15"])
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    return messages[0]


class Engine(nn.DataParallel):
    """As DeepSpeed's, say, and further attributes as a pipeline asks for them."""

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name) if name == "module" else getattr(self.module, name)


def test_data_parallelism_is_named() -> None:
    pipe = build_small_unet()
    pipe.unet = Engine(pipe.unet)
    assert "in a Engine, which shares" in refused(pipe)
    pipe = build_small_unet()
    with_peft(pipe)
    pipe.unet = Engine(Around(pipe.unet))
    assert refused(pipe).endswith("pipe.unet = pipe.unet.module")


def _with_ddp(rank: int) -> str:
    class Ddp(nn.parallel.DistributedDataParallel):
        def __getattr__(self, name: str) -> Any:
            return super().__getattr__(name) if name == "module" else getattr(self.module, name)

    pipe = build_small_unet()
    pipe.unet = Ddp(pipe.unet)
    return refused(pipe)


def test_distributed_data_parallelism_is_named() -> None:
    (message,) = run_ranks(1, _with_ddp)
    assert message.endswith("pipe.unet = pipe.unet.module")


def compile_inside(pipe: DiffusionPipeline) -> None:
    put(pipe, Around(torch.compile(pipe.unet)))


def compile_around(pipe: DiffusionPipeline) -> None:
    put(pipe, torch.compile(Around(pipe.unet)))


def compile_in_place(pipe: DiffusionPipeline) -> None:
    put(pipe, Around(pipe.unet))
    pipe.unet.compile()


@pytest.mark.parametrize("wrap", [compile_inside, compile_around, compile_in_place])
def test_what_is_compiled_as_a_whole_is_refused(wrap: Callable[[DiffusionPipeline], None]) -> None:
    pipe = build_small_unet()
    wrap(pipe)
    with pytest.raises(ConfigurationError, match=r"compiled as a whole.*pipe\.unet.*\.compile_repeated_blocks\(\)"):
        attached(pipe)
