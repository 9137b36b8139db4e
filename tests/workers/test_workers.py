"""A pipeline in processes that stay, on a Ray of two nodes on this machine, which are two addresses of the loopback."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.cluster_utils import Cluster

from asyncdiff import AsyncDiff, ConfigurationError, ExchangeError, SplitError, StoppedError, Workers
from asyncdiff.workers.progress import Bar
from tests.tiny.narrow import load_narrow_demo, save_narrow_demo
from tests.workers.drawing import STEPS, draw, save_adapter

SETTINGS: dict[str, Any] = {"components": 2, "timeout": 30}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    before = dict(os.environ)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    nodes = [{"num_cpus": 1, "node_ip_address": f"127.0.0.{number}"} for number in (2, 3)]
    cluster = Cluster(initialize_head=True, head_node_args={**nodes[0], "include_dashboard": False})
    cluster.add_node(**nodes[1])
    yield cluster.address
    cluster.shutdown()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def opened(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    model = save_narrow_demo(tmp_path_factory.mktemp("model"))
    with Workers(str(model), devices=2, address=address, **SETTINGS) as pipe:
        yield pipe


@pytest.fixture
def pipe(opened: Workers) -> Workers:
    opened.set_progress_bar_config(disable=True)
    return opened


@pytest.fixture(scope="module")
def plain() -> Any:
    """The same settings in this process."""
    pipe = load_narrow_demo()
    pipe.set_progress_bar_config(disable=True)
    with AsyncDiff(pipe, components=2, executor="local"):
        yield pipe


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_the_picture_of_one_process(pipe: Workers, plain: Any) -> None:
    """On both machines; generators, and what is drawn without one, go on as they would."""
    generators = [torch.Generator().manual_seed(5) for _ in range(2)]
    for _ in range(2):
        pictures = [
            each("rocket", num_inference_steps=STEPS, generator=generator).images[0].tobytes()
            for each, generator in zip((pipe, plain), generators, strict=True)
        ]
        assert pictures[0] == pictures[1]
    without = []
    for each in (pipe, plain):
        torch.manual_seed(7)
        without.append([each("rocket", num_inference_steps=STEPS).images[0].tobytes() for _ in range(2)])
    assert without[0] == without[1] and without[0][0] != without[0][1]
    report = pipe.report()
    assert report.executor == "distributed" and report.world_size == 2 and report.accelerated
    assert [seat.address for seat in pipe._present().seats] == ["127.0.0.2", "127.0.0.3"]


def test_whatever_is_data(pipe: Workers, plain: Any) -> None:
    config = plain.unet.config
    shape = (2, config.in_channels, config.sample_size, config.sample_size)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    arguments = {"latents": latents, "output_type": "np", "num_inference_steps": STEPS, "num_images_per_prompt": 2}
    found, expected = pipe("rocket", **arguments), plain("rocket", **arguments)
    assert type(found) is type(expected)
    assert (found.images == expected.images).all()
    (first,) = pipe("rocket", latents=latents[:1], num_inference_steps=4, output_type="pt", return_dict=False)[0]
    assert first.device.type == "cpu"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"prompt": print}, "prompt is a function"),
        ({"prompt": "rocket", "callback_on_step_end": 3}, "callback_on_step_end must be a function"),
    ],
    ids=str,
)
def test_what_is_refused_before_anything_is_sent(pipe: Workers, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        pipe(**arguments)
    assert sentence in str(raised.value) and "\n" not in str(raised.value)


def test_what_the_pipeline_itself_refuses(pipe: Workers, plain: Any) -> None:
    with pytest.raises(ValueError, match="Provide either `prompt` or `prompt_embeds`") as raised:
        pipe(num_inference_steps=STEPS)
    assert "on rank 0" in str(raised.value.__cause__)
    assert draw(pipe).tobytes() == draw(plain).tobytes()


def test_one_bar_and_every_step_here(pipe: Workers, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[int, float, torch.Size]] = []

    def tell(given: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert given is pipe
        told.append((step, float(timestep), tensors["latents"].shape))
        return tensors

    pipe.set_progress_bar_config(desc="drawing")
    draw(pipe, callback_on_step_end=tell, callback_on_step_end_tensor_inputs=["latents"])
    assert [step for step, _, _ in told] == list(range(STEPS))
    assert [time for _, time, _ in told] == sorted((time for _, time, _ in told), reverse=True)
    assert len(told[0][2]) == 4
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.strip()]
    assert all(line.startswith("drawing") for line in lines) and f"{STEPS}/{STEPS}" in lines[-1]


def test_what_every_rank_did_and_when(pipe: Workers, plain: Any) -> None:
    """Told of calls that are timed; progress says the same of the steps. The picture is the same."""
    told: list[Bar] = []
    pipe.tell_progress(told.append)
    try:
        with pipe.timed():
            picture = draw(pipe)
    finally:
        pipe.tell_progress(None)
    assert picture.tobytes() == draw(plain).tobytes()
    counts, found = pipe.report().denoisers[0].counts, pipe.timeline()
    assert [row.rank for row in found.rows] == [0, 1] and counts.rounds
    for row in found.rows:
        steps = [span for span in row.spans if span.what == "step"]
        assert [span.name for span in steps] == [kind.value for kind in counts.kinds]
        assert {"text_encoder", "vae.decode"} <= {span.name for span in row.spans if span.what == "part"}
        assert row.seconds_waited > 0 and {"waiting", "exchange"} <= {span.what for span in row.spans}
        assert all(0 <= span.begin <= span.end <= found.seconds for span in row.spans)
    assert told[-1] == Bar(0, STEPS, STEPS, tuple(kind.value for kind in counts.kinds))
    draw(pipe)
    with pytest.raises(ConfigurationError, match="was not timed"):
        pipe.timeline()


def test_advice_is_given_here(pipe: Workers, caplog: pytest.LogCaptureFixture) -> None:
    pipe("rocket", num_inference_steps=2)
    (advice,) = [each for each in caplog.records if each.name == "asyncdiff.runtime.advice"]
    assert "asyncdiff accelerates nothing in this generation of 2 steps" in advice.getMessage()


def test_a_callback_cannot_change_but_end_a_generation(pipe: Workers, plain: Any) -> None:
    def change(given: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"latents": torch.zeros(1)}

    def fail(given: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        raise ZeroDivisionError

    def stop(given: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        given._interrupt = True
        return tensors

    for callback, error in ((change, ConfigurationError), (fail, ZeroDivisionError), (stop, StoppedError)):
        before = pipe.processes
        with pytest.raises(error):
            pipe("rocket", num_inference_steps=200, callback_on_step_end=callback)
        assert pipe.processes == before
    assert draw(pipe).tobytes() == draw(plain).tobytes()


def test_other_settings_in_the_same_processes(pipe: Workers, plain: Any) -> None:
    """What cannot work leaves those before."""
    before, expected = pipe.processes, draw(plain).tobytes()
    assert draw(pipe).tobytes() == expected
    other = load_narrow_demo()
    other.set_progress_bar_config(disable=True)
    settings: dict[str, Any] = {"warmup": 1, "cooldown": 1, "method": "paper"}
    try:
        pipe.attach(**SETTINGS, **settings)
        with AsyncDiff(other, components=2, executor="local", **settings):
            assert draw(pipe).tobytes() == draw(other).tobytes() != expected
        for bad, error in (
            ({"components": 3}, ConfigurationError),
            ({"warm": 3}, ConfigurationError),
            ({"shard": True}, ConfigurationError),
            ({"split": [["nothing"], ["mid_block"]]}, SplitError),
        ):
            with pytest.raises(error):
                pipe.attach(**bad)
        assert pipe.report().warmup == 1
    finally:
        pipe.attach(**SETTINGS)
    assert draw(pipe).tobytes() == expected and pipe.processes == before


def test_an_end_from_another_thread(pipe: Workers, plain: Any) -> None:
    before = pipe.processes
    timer = threading.Timer(1.0, pipe.stop)
    timer.start()
    with pytest.raises(StoppedError, match="was stopped by stop"):
        pipe("rocket", num_inference_steps=1000)
    pipe.stop()  # of nothing
    assert draw(pipe).tobytes() == draw(plain).tobytes() and pipe.processes == before
    assert not pipe.revive()


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell lets what it runs in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_ends_a_generation_and_nothing_else(pipe: Workers, plain: Any) -> None:
    begun = time.monotonic()
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    before = pipe.processes
    with pytest.raises(KeyboardInterrupt):
        pipe("rocket", num_inference_steps=1000)
    assert time.monotonic() - begun < 15
    assert pipe.processes == before and all(map(is_running, before))
    assert draw(pipe).tobytes() == draw(plain).tobytes()


@pytest.fixture
def in_another_style(pipe: Workers, plain: Any, tmp_path: Path) -> Iterator[None]:
    """LoRA is loaded and set by call."""
    save_adapter(tmp_path)
    for each in (pipe, plain):
        each.load_lora_weights(tmp_path, adapter_name="one", weight_name="pytorch_lora_weights.safetensors")
        each.set_adapters(["one"], [0.7])
    yield
    for each in (pipe, plain):
        each.unload_lora_weights()


def test_methods_run_on_all_ranks(pipe: Workers, plain: Any, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    without = draw(plain).tobytes()
    request.getfixturevalue("in_another_style")
    assert pipe.get_active_adapters() == ["one"]
    expected = draw(plain).tobytes()
    assert expected != without and draw(pipe).tobytes() == expected
    pipe.vae.enable_slicing()
    with pytest.raises(AttributeError, match="has a method or a part 'load_lora'"):
        _ = pipe.load_lora
    with pytest.raises(AttributeError, match="'scheduler' cannot be set: the pipeline is in other processes"):
        pipe.scheduler = None
    with pytest.raises(AttributeError, match="'use_tiling' cannot be set"):
        pipe.vae.use_tiling = True
    with pytest.raises(AttributeError, match="'vae' has no method 'enable'"):
        _ = pipe.vae.enable


@pytest.mark.whole
@pytest.mark.usefixtures("in_another_style")
def test_and_again_after_one_has_died(pipe: Workers, plain: Any) -> None:
    """A rank is killed in the middle of a generation."""
    expected, before = draw(plain).tobytes(), pipe.processes

    def kill(given: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        os.kill(before[1], signal.SIGKILL)
        return tensors

    with pytest.raises(ExchangeError, match=r"rank 1 \(process \d+ on 127.0.0.3\) has died.*starts the processes anew"):
        pipe("rocket", num_inference_steps=1000, callback_on_step_end=kill)
    assert not any(map(is_running, before))
    assert pipe.revive() and not pipe.revive()
    assert draw(pipe).tobytes() == expected


def test_leaving_the_block_ends_all_processes(opened: Workers) -> None:
    """The last test: also when the block raises."""
    before = opened.processes
    assert all(map(is_running, before))
    with pytest.raises(ZeroDivisionError), opened:
        raise ZeroDivisionError
    end = time.monotonic() + 10  # those of the other machine are told, and not waited for
    while any(map(is_running, before)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(is_running, before))
    assert opened.report().world_size == 2
    with pytest.raises(ConfigurationError, match="were closed"):
        draw(opened)
