"""However a pipeline's modules are run (compiled, offloaded, quantized, copied): rounds as ever, or a clear refusal."""

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline, FirstBlockCacheConfig, StableDiffusionImg2ImgPipeline
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from asyncdiff import AsyncDiff, ConfigurationError
from tests.comparison import relative_error
from tests.tiny import PIPELINES, run
from tests.tiny.adapters import SMALL
from tests.tiny.base import image

TINY = {"unet": SMALL, "flux": PIPELINES["flux"]}
NAMES = list(TINY)


def denoiser_of(pipe: DiffusionPipeline, name: str) -> nn.Module:
    return getattr(pipe, TINY[name].denoiser)


def in_rounds(pipe: DiffusionPipeline, name: str) -> Tensor:
    """The result of two components; some rounds must have been run."""
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper") as async_diff:
        found = run(pipe, TINY[name])
        assert async_diff.report().denoisers[0].counts.rounds >= 3
    return found


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", [pytest.param("unet", marks=pytest.mark.whole), "flux"])
def test_repeated_blocks_are_compiled_once(name: str) -> None:
    """Substitution stays outside the graphs: as many are compiled as without asyncdiff, and none breaks."""
    pipe = TINY[name].build()
    plain, expected = run(pipe, TINY[name]), in_rounds(pipe, name)
    compiler = CompileCounterWithBackend("eager")
    denoiser_of(pipe, name).compile_repeated_blocks(backend=compiler, fullgraph=True)
    assert relative_error(run(pipe, TINY[name]), plain) < 1e-5
    graphs, blocks = compiler.frame_count, denoiser_of(pipe, name)._repeated_blocks
    repeated = sum(type(module).__name__ in blocks for module in denoiser_of(pipe, name).modules())
    assert 0 < graphs < repeated
    assert relative_error(in_rounds(pipe, name), expected) < 1e-5
    assert relative_error(run(pipe, TINY[name]), plain) < 1e-5
    assert compiler.frame_count == graphs


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("name", ["unet", pytest.param("flux", marks=pytest.mark.whole)])
def test_compiled_between_two_calls(name: str) -> None:
    pipe = TINY[name].build()
    expected = in_rounds(pipe, name)
    compiler = CompileCounterWithBackend("eager")
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper") as async_diff:
        run(pipe, TINY[name])
        denoiser_of(pipe, name).compile_repeated_blocks(backend=compiler, fullgraph=True)
        assert relative_error(run(pipe, TINY[name]), expected) < 1e-5
        assert async_diff.report().accelerated
    assert compiler.frame_count > 0


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_module_is_not_taken_apart() -> None:
    """Its inside is a graph: it becomes one unit, which several components cannot share."""
    pipe = TINY["unet"].build()
    pipe.unet.down_blocks[1].compile(backend="eager")
    with AsyncDiff(pipe, components=2, warmup=2, executor="local", method="paper") as async_diff:
        run(pipe, TINY["unet"])
        units = [unit for component in async_diff.report().denoisers[0].components for unit in component]
    assert not any(unit.startswith("down_blocks.1.") for unit in units)


def compile_whole(pipe: DiffusionPipeline, name: str) -> None:
    denoiser_of(pipe, name).compile(backend="eager")


def wrap_compiled(pipe: DiffusionPipeline, name: str) -> None:
    setattr(pipe, TINY[name].denoiser, torch.compile(denoiser_of(pipe, name), backend="eager"))


@pytest.mark.parametrize("change", [compile_whole, wrap_compiled])
def test_a_denoiser_compiled_whole_is_refused(name: str, change: Callable[..., None]) -> None:
    pipe = TINY[name].build()
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper"):
        run(pipe, TINY[name])
        change(pipe, name)
        with pytest.raises(ConfigurationError, match=r"compiled as a whole.*compile_repeated_blocks\(\)"):
            run(pipe, TINY[name])
    with pytest.raises(ConfigurationError, match=r"compiled as a whole.*compile_repeated_blocks\(\)"):
        AsyncDiff(pipe, executor="local", components=2, method="paper")


def test_a_replaced_denoiser_is_refused(name: str) -> None:
    pipe = TINY[name].build()
    with AsyncDiff(pipe, executor="local", components=2, method="paper"):
        setattr(pipe, TINY[name].denoiser, denoiser_of(TINY[name].build(), name))
        with pytest.raises(ConfigurationError, match=r"was replaced.*attach again"):
            run(pipe, TINY[name])


def test_another_cache_is_refused() -> None:
    pipe = TINY["flux"].build()
    with AsyncDiff(pipe, executor="local", components=2, method="paper"):
        run(pipe, TINY["flux"])
        pipe.transformer.enable_cache(FirstBlockCacheConfig())
        with pytest.raises(ConfigurationError, match=r"has a cache enabled.*disable_cache\(\)"):
            run(pipe, TINY["flux"])
        pipe.transformer.disable_cache()
        run(pipe, TINY["flux"])


def offload_models(pipe: DiffusionPipeline) -> None:
    pipe.enable_model_cpu_offload(device="cpu")


def offload_blocks(pipe: DiffusionPipeline) -> None:
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="block_level", num_blocks_per_group=1)


def offload_leaves(pipe: DiffusionPipeline) -> None:
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")


@pytest.mark.parametrize(
    ("name", "offload", "attached_first"),
    [
        ("flux", offload_models, True),
        ("flux", offload_blocks, True),
        ("flux", offload_leaves, True),
        *(
            pytest.param(name, offload, attached_first, marks=pytest.mark.whole)
            for name, offload, attached_first in (
                ("unet", offload_leaves, True),
                ("unet", offload_leaves, False),
                ("unet", offload_models, False),
                ("unet", offload_models, True),
                ("unet", offload_blocks, False),
                ("unet", offload_blocks, True),
                ("flux", offload_models, False),
                ("flux", offload_blocks, False),
                ("flux", offload_leaves, False),
            )
        ),
    ],
)
def test_offloading(name: str, offload: Callable[[DiffusionPipeline], None], attached_first: bool) -> None:
    tiny = TINY[name]
    pipe = tiny.build()
    plain, expected = run(pipe, tiny), in_rounds(pipe, name)
    if not attached_first:
        offload(pipe)
    async_diff = AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper")
    if attached_first:
        run(pipe, tiny)
        offload(pipe)
    for _ in range(2):
        assert torch.equal(run(pipe, tiny), expected)
    assert async_diff.report().accelerated
    async_diff.disable()
    assert any(
        hasattr(module, "_hf_hook") or hasattr(module, "_diffusers_hook") for module in pipe.components["vae"].modules()
    )
    assert torch.equal(run(pipe, tiny), plain)


@pytest.mark.parametrize(
    "kind", ["Int8WeightOnlyConfig", pytest.param("Int8DynamicActivationInt8WeightConfig", marks=pytest.mark.whole)]
)
def test_quantized_with_torchao(name: str, kind: str) -> None:
    quantization = pytest.importorskip("torchao.quantization")

    def quantize(pipe: DiffusionPipeline) -> DiffusionPipeline:
        quantization.quantize_(denoiser_of(pipe, name), getattr(quantization, kind)())
        return pipe

    _check_quantized(name, quantize)


@pytest.mark.parametrize("kind", ["Linear8bitLt", "Linear4bit"])
def test_quantized_with_bitsandbytes(name: str, kind: str) -> None:
    layers = pytest.importorskip("bitsandbytes").nn

    def quantize(pipe: DiffusionPipeline) -> DiffusionPipeline:
        denoiser = denoiser_of(pipe, name)
        for own, module in list(denoiser.named_modules()):
            if isinstance(module, nn.Linear) and "transformer_blocks" in own:
                options = {"has_fp16_weights": False} if kind == "Linear8bitLt" else {"compute_dtype": torch.float32}
                layer = getattr(layers, kind)(
                    module.in_features, module.out_features, module.bias is not None, **options
                )
                layer.load_state_dict(module.state_dict())
                denoiser.set_submodule(own, layer.to("cpu"))
        return pipe

    _check_quantized(name, quantize)


def _check_quantized(name: str, quantize: Callable[[DiffusionPipeline], DiffusionPipeline]) -> None:
    tiny = TINY[name]
    exact = run(tiny.build(), tiny)
    pipe = quantize(tiny.build())
    sequential = run(pipe, tiny)
    assert not torch.equal(sequential, exact)
    with (
        AsyncDiff(pipe, components=3, warmup=99, executor="local", method="paper"),
        pytest.warns(UserWarning, match="accelerates nothing"),
    ):
        assert torch.equal(run(pipe, tiny), sequential)
    found = in_rounds(pipe, name)
    # As far from its own sequential result as without quantization, to a part.
    unquantized = relative_error(in_rounds(tiny.build(), name), exact)
    assert 0 < relative_error(found, sequential) < 1.5 * unquantized
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper"):
        run(pipe, tiny)
        assert torch.equal(run(pipe, tiny), found)


def pickled(pipe: DiffusionPipeline) -> DiffusionPipeline:
    return pickle.loads(pickle.dumps(pipe))


@pytest.mark.parametrize(
    ("name", "copied"),
    [
        ("unet", copy.deepcopy),
        ("flux", pickled),
        pytest.param("unet", pickled, marks=pytest.mark.whole),
        pytest.param("flux", copy.deepcopy, marks=pytest.mark.whole),
    ],
)
def test_a_copy_of_an_attached_pipeline_is_a_plain_pipeline(name: str, copied: Callable[[Any], Any]) -> None:
    tiny = TINY[name]
    pipe = tiny.build()
    plain = run(pipe, tiny)
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper") as async_diff:
        expected = run(pipe, tiny)
        other = copied(pipe)
        assert torch.equal(run(other, tiny), plain)
        assert torch.equal(run(pipe, tiny), expected)
        with AsyncDiff(other, warmup=2, executor="local", components=2, method="paper"):
            assert torch.equal(run(other, tiny), expected)
        assert torch.equal(run(pipe, tiny), expected)
        assert async_diff.report().accelerated
    assert torch.equal(run(other, tiny), plain)


def test_two_pipelines_with_one_denoiser() -> None:
    """What is attached to the first works in the second as well, and cannot be attached twice."""
    tiny = TINY["unet"]
    pipe = tiny.build()
    second = StableDiffusionImg2ImgPipeline.from_pipe(pipe)
    second.set_progress_bar_config(disable=True)
    inputs = dict(image=image(), strength=0.9, num_inference_steps=8)
    plain = run(second, tiny, **inputs)
    with AsyncDiff(pipe, warmup=2, executor="local", components=2, method="paper") as async_diff:
        with pytest.raises(ConfigurationError, match="attached to this pipeline already"):
            AsyncDiff(second, executor="local", components=2, method="paper")
        expected = run(pipe, tiny)
        assert not torch.equal(run(second, tiny, **inputs), plain)
        assert async_diff.report().accelerated
        assert torch.equal(run(pipe, tiny), expected)
    assert torch.equal(run(second, tiny, **inputs), plain)
