"""What else may decide which parts of a denoiser are computed, or where: refused, but where all steps are alike."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, hooks
from diffusers.hooks import HookRegistry
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import distribute_module

from asyncdiff import AsyncDiff, ConfigurationError, OtherUnitsError
from tests.comparison import relative_error
from tests.processes import run_ranks
from tests.tiny import PIPELINES, TinyPipeline, run

FLUX = PIPELINES["flux"]
APPLY = sorted(name for name in dir(hooks) if name.startswith("apply_"))


def in_rounds(pipe: DiffusionPipeline, tiny: TinyPipeline = FLUX) -> torch.Tensor:
    """The result of two components; some rounds must have been run."""
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper") as async_diff:
        found = run(pipe, tiny)
        assert async_diff.report().denoisers[0].counts.rounds >= 3
    return found


class NoRanks:
    """In the place of what names the ranks, which putting the hooks on does not ask."""

    _mesh = None


def cast_one(pipe: DiffusionPipeline) -> None:
    hooks.apply_layerwise_casting_hook(pipe.transformer.proj_out, torch.bfloat16, torch.float32, non_blocking=False)


def shared_out(pipe: DiffusionPipeline) -> None:
    hooks.apply_context_parallel(pipe.transformer, NoRanks(), pipe.transformer._cp_plan)


DEEDS: dict[str, Callable[[DiffusionPipeline], object]] = {
    "apply_faster_cache": lambda pipe: hooks.apply_faster_cache(
        pipe.transformer, hooks.FasterCacheConfig(current_timestep_callback=lambda: 500, tensor_format="BCHW")
    ),
    "apply_first_block_cache": lambda pipe: hooks.apply_first_block_cache(
        pipe.transformer, hooks.FirstBlockCacheConfig()
    ),
    "apply_mag_cache": lambda pipe: hooks.apply_mag_cache(pipe.transformer, hooks.MagCacheConfig(calibrate=True)),
    "apply_pyramid_attention_broadcast": lambda pipe: hooks.apply_pyramid_attention_broadcast(
        pipe.transformer,
        hooks.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
        ),
    ),
    "apply_sea_cache": lambda pipe: hooks.apply_sea_cache(pipe.transformer, hooks.SeaCacheConfig()),
    "apply_taylorseer_cache": lambda pipe: hooks.apply_taylorseer_cache(
        pipe.transformer, hooks.TaylorSeerCacheConfig()
    ),
    "apply_text_kv_cache": lambda pipe: hooks.apply_text_kv_cache(pipe.transformer, hooks.TextKVCacheConfig()),
    "apply_context_parallel": shared_out,
    "apply_group_offloading": lambda pipe: hooks.apply_group_offloading(
        pipe.transformer, onload_device=torch.device("cpu"), offload_type="leaf_level"
    ),
    "apply_layer_skip": lambda pipe: hooks.apply_layer_skip(
        pipe.transformer, hooks.LayerSkipConfig(indices=[1], fqn="transformer_blocks")
    ),
    "apply_layerwise_casting": lambda pipe: hooks.apply_layerwise_casting(
        pipe.transformer, storage_dtype=torch.bfloat16, compute_dtype=torch.float32
    ),
    "apply_layerwise_casting_hook": cast_one,
}
SAME_IN_EVERY_STEP = {"apply_group_offloading", "apply_layer_skip", "apply_layerwise_casting"} | {
    "apply_layerwise_casting_hook"
}
WITH_RANKS = {"apply_tensor_parallel"}  # below: it needs several


def names_of_hooks(pipe: DiffusionPipeline) -> set[str]:
    registries = [getattr(module, "_diffusers_hook", None) for module in pipe.transformer.modules()]
    return {name for registry in registries if registry is not None for name in registry.hooks}


@pytest.mark.parametrize("name", [name for name in APPLY if name not in SAME_IN_EVERY_STEP | WITH_RANKS])
def test_a_rule_from_step_to_step_is_refused(name: str) -> None:
    """Before it is attached, at the next generation, in the middle of one; and what the error advises helps."""
    pipe = FLUX.build()
    plain, expected = run(pipe, FLUX), in_rounds(pipe)
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper"):
        run(pipe, FLUX)
        DEEDS[name](pipe)
        put_on = names_of_hooks(pipe)
        assert put_on
        with pytest.raises(
            ConfigurationError, match=r"the 'transformer' has the hook '\w+.*' \(\w+\) on its"
        ) as caught:
            run(pipe, FLUX)
    for own in put_on:
        assert repr(own) in str(caught.value)
    with pytest.raises(ConfigurationError, match=r"remove_hook"):
        AsyncDiff(pipe, executor="local", components=2, method="paper")
    for own in put_on:
        HookRegistry.check_if_exists_or_initialize(pipe.transformer).remove_hook(own)
    assert torch.equal(in_rounds(pipe), expected)
    assert torch.equal(run(pipe, FLUX), plain)


@pytest.mark.parametrize("name", ["apply_first_block_cache", "apply_context_parallel"])
def test_it_is_noticed_in_the_middle_of_a_generation(name: str) -> None:
    pipe = FLUX.build()

    def put_on(pipe: DiffusionPipeline, step: int, timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            DEEDS[name](pipe)
        return {}

    with (
        AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper"),
        pytest.raises(ConfigurationError, match="the 'transformer' has the hook"),
    ):
        run(pipe, FLUX, callback_on_step_end=put_on)


@pytest.mark.parametrize("name", sorted(SAME_IN_EVERY_STEP & set(APPLY)))
def test_hooks_that_do_the_same_in_every_step_work(name: str) -> None:
    tiny = PIPELINES["cogview4"]  # some others fail with a layer skipped, attached or not
    pipe = tiny.build()
    without = in_rounds(pipe, tiny)
    error = relative_error(without, run(pipe, tiny))
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper") as async_diff:
        run(pipe, tiny)
        DEEDS[name](pipe)
        found = run(pipe, tiny)
        assert async_diff.report().accelerated
    plain = run(pipe, tiny)
    assert relative_error(found, plain) < 2 * error
    assert torch.equal(found, without) == (name == "apply_group_offloading")
    assert torch.equal(in_rounds(pipe, tiny), found)
    with (
        AsyncDiff(pipe, warmup=99, executor="local", components=2, method="paper"),
        pytest.warns(UserWarning, match="accelerates nothing"),
    ):
        assert torch.equal(run(pipe, tiny), plain)


def _distributed_weights(rank: int) -> str:
    pipe = FLUX.build()
    distribute_module(pipe.transformer.proj_out, init_device_mesh("cpu", (1,)))
    with pytest.raises(ConfigurationError) as caught:
        AsyncDiff(pipe, executor="local", components=2)
    return str(caught.value)


def test_weights_that_are_distributed_among_ranks_are_refused() -> None:
    """As tensor parallelism (`enable_parallelism`) and FSDP leave them."""
    (message,) = run_ranks(1, _distributed_weights)
    assert "'proj_out.weight'" in message and "load it whole" in message


def skip_all_blocks(monkeypatch: pytest.MonkeyPatch, denoiser: nn.Module, calls: set[int]) -> None:
    """What TeaCache's recipe does, by a simple rule: a forward put on the class leaves all blocks out in some calls."""
    plain, made = type(denoiser).forward, itertools.count()

    @functools.wraps(plain)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if next(made) not in calls:
            return plain(self, *args, **kwargs)
        lists = {name: module for name, module in self.named_children() if isinstance(module, nn.ModuleList)}
        try:
            for name in lists:
                setattr(self, name, nn.ModuleList())
            return plain(self, *args, **kwargs)
        finally:
            for name, blocks in lists.items():
                setattr(self, name, blocks)

    monkeypatch.setattr(type(denoiser), "forward", forward)


NOT_CALLED = "'transformer_blocks.0' was called not at all, and once when the denoiser was recorded"
NOT_RECORDED = "'.*transformer_blocks.0' was called once, and not at all when the denoiser was recorded"


@pytest.mark.parametrize(
    ("skipped", "step", "what"),
    [
        pytest.param({1}, 1, NOT_CALLED, id="what others follow on"),
        pytest.param({4}, 3, NOT_CALLED, id="a round's first component"),
        pytest.param({5}, 3, NOT_CALLED, id="a round's second component"),
        pytest.param({0}, 1, NOT_RECORDED, id="what was recorded"),
    ],
)
def test_a_rule_put_on_the_class_is_noticed(
    monkeypatch: pytest.MonkeyPatch, skipped: set[int], step: int, what: str
) -> None:
    pipe = FLUX.build()
    expected = in_rounds(pipe)
    skip_all_blocks(monkeypatch, pipe.transformer, skipped)
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper"):
        with pytest.raises(OtherUnitsError, match=f"in step {step} of the denoiser 'transformer' {what}: another rule"):
            run(pipe, FLUX)
        monkeypatch.undo()
        assert torch.equal(run(pipe, FLUX), expected)
    assert torch.equal(in_rounds(pipe), expected)
