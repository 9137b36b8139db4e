"""What the tests of workers draw, and with what."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict

from tests.tiny.narrow import load_narrow_demo

STEPS = 8


def draw(pipe: Any, seed: int = 0, **more: Any) -> Any:
    generator = torch.Generator().manual_seed(seed)
    return pipe("a red apple", num_inference_steps=STEPS, generator=generator, **more).images[0]


def save_adapter(folder: Path, pipe: Any = None) -> None:
    """A low-rank adapter for the narrow demo's UNet, or another pipeline's, of random numbers."""
    pipe = load_narrow_demo() if pipe is None else pipe
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    pipe.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(pipe.unet))
