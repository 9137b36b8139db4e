"""What a plan says of dividing tokens at real widths: FLUX.1 dev at 1024², as it is and with guidance. MODELLED.

No weights are read, and there are none: a pipeline's configuration, written from FLUX.1's published sizes, is all that
`asyncdiff.plan` is given. With guidance (`true_cfg_scale`) a step has two calls, which two groups of devices share out.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import asyncdiff
from asyncdiff.planning.candidates import Candidate
from benchmarks.gpu.models import SUBJECTS
from benchmarks.machine import machine

LINKS = ("nvlink", "pcie4")
DEVICES = (2, 4, 8)
STEPS = 50
SIZE = {"height": 1024, "width": 1024}
GUIDED = {"true_cfg_scale": 4.0, "negative_prompt": "blurred"}

# FLUX.1 dev, as its configuration files have it: only what is not a class's own default.
_CLIP = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
_T5 = {"d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24, "feed_forward_proj": "gated-gelu"}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
_FILES: Mapping[str, Mapping[str, Any]] = {
    "transformer/config.json": {"_class_name": "FluxTransformer2DModel", **SUBJECTS["flux"].config},
    "vae/config.json": {"_class_name": "AutoencoderKL", **_VAE},
    "scheduler/scheduler_config.json": {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True},
    "text_encoder/config.json": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **_CLIP},
    "text_encoder_2/config.json": {"architectures": ["T5EncoderModel"], "model_type": "t5", **_T5},
    "tokenizer/tokenizer_config.json": {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"},
    "tokenizer_2/tokenizer_config.json": {"model_max_length": 512, "tokenizer_class": "T5Tokenizer"},
    "model_index.json": {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    },
}


@dataclass(frozen=True)
class Row:
    """What a plan says of one way."""

    guided: bool
    link: str
    devices: int
    way: str
    speedup: float
    bytes_per_picture: float
    memory: float


def write_flux(folder: Path) -> Path:
    """The configuration of FLUX.1 dev."""
    for name, content in _FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def rows(folder: Path, guided: bool, link: str, devices: int) -> Iterator[Row]:
    """Those ways that take all of so many devices and are told: by tokens, and components alone beside them."""
    found = asyncdiff.plan(
        str(folder), devices, link=link, steps=STEPS, warmup=3, inputs={**SIZE, **(GUIDED if guided else {})}
    )
    for candidate in found.candidates:
        if candidate.devices == devices and _is_told(candidate):
            memory = candidate.memory.total
            yield Row(guided, link, devices, str(candidate.way), candidate.speedup, candidate.bytes_per_picture, memory)


def _is_told(candidate: Candidate) -> bool:
    way = candidate.way
    return way.bridge <= 2 and way.stride == 1 and not way.shard and (way.tokens > 1 or way.bridge == 1)


def main() -> None:
    """Plan, print, and write benchmarks/results/plans.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, nargs="+", default=list(DEVICES))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "plans.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = write_flux(Path(place))
        found = [
            row
            for guided in (False, True)
            for link in LINKS
            for devices in given.devices
            for row in rows(folder, guided, link, devices)
        ]
    for row in found:
        print(
            f"{'guided' if row.guided else 'as it is':8s} {row.link:7s} {row.devices} devices  {row.way:48s} "
            f"{row.speedup:5.2f}x  {row.bytes_per_picture / 1e9:6.1f} GB a picture  {row.memory / 2**30:5.1f} GiB"
        )
    result = {"what": "modelled", "machine": machine(), "steps": STEPS, "rows": [asdict(row) for row in found]}
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
