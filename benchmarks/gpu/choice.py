"""Two lines, as a user types them, on two ranks that share one device: which way is chosen, and does it hold?

FLUX.1 dev with random weights of real width, 1024², over gloo and the host's memory. It has no guidance to share out:
AsyncDiff(pipe) times a call by tokens, and what travels, and decides. Times say nothing of two devices.
"""

import argparse
import json
import logging
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from diffusers import FluxPipeline

from asyncdiff import AsyncDiff
from benchmarks.gpu.loop import Loop, Setting
from benchmarks.gpu.models import SUBJECTS
from benchmarks.gpu.ranks import of_two_ranks

STEPS = 10
TIMEOUT = 90.0


def chosen_way(limit: float, tiny: bool) -> dict[str, Any]:
    """What was chosen, or why nothing was; in so many seconds at most."""
    return of_two_ranks(limit, "benchmarks.gpu.choice", *(["--tiny"] if tiny else []))


class _Said(logging.Handler):
    """Keeps what the library says."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def _pipeline(setting: Setting) -> tuple[Any, dict[str, Any]]:
    """A pipeline without text encoders and decoder, and what it is called with."""
    torch.manual_seed(0)
    loop = Loop(SUBJECTS["flux"], setting)
    pipe = FluxPipeline(loop.scheduler, None, None, None, None, None, loop.denoiser)
    pipe.set_progress_bar_config(disable=True)
    config: Any = loop.denoiser.config
    side = 1024 if not setting.tiny else 128
    tokens = SUBJECTS["flux"].tokens if not setting.tiny else 7
    text, pooled = (
        torch.randn(shape, device=setting.device, dtype=setting.dtype)
        for shape in ((1, tokens, config.joint_attention_dim), (1, config.pooled_projection_dim))
    )
    given = dict(prompt_embeds=text, pooled_prompt_embeds=pooled, height=side, width=side)
    return pipe, given | dict(num_inference_steps=STEPS, output_type="latent")


def _draw(pipe: Any, given: dict[str, Any]) -> tuple[torch.Tensor, float]:
    begin = time.perf_counter()
    latents = pipe(**given, generator=torch.Generator("cpu").manual_seed(0)).images.float().cpu()
    return latents, time.perf_counter() - begin


def main() -> None:
    """One of the ranks; rank 0 tells."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true")
    tiny = parser.parse_args().tiny
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    dist.init_process_group("gloo", timeout=timedelta(seconds=TIMEOUT))
    said = _Said()
    logging.getLogger("asyncdiff").addHandler(said)
    logging.getLogger("asyncdiff").setLevel(logging.INFO)
    try:
        pipe, given = _pipeline(Setting(device, torch.bfloat16, tiny))
        plain, seconds_plain = _draw(pipe, given)
        async_diff = AsyncDiff(pipe, timeout=TIMEOUT)
        _, seconds_first = _draw(pipe, given)
        found, seconds = _draw(pipe, given)
        report = str(async_diff.report())
        async_diff.disable()
        again, _ = _draw(pipe, given)
        if dist.get_rank() == 0:
            told = {
                "device": str(device),
                "said": [line for line in said.lines if "as modelled by" in line],
                "report": report,
                "relative_error": float((found - plain).norm() / plain.norm()),
                "plain_again": bool(torch.equal(again, plain)),
                "seconds_plain": seconds_plain,
                "seconds_first": seconds_first,
                "seconds": seconds,
            }
            print(json.dumps(told))
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
