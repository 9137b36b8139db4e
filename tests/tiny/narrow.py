"""The demo pipeline with a UNet of its structure and a fraction of its width: for what is not about pictures."""

from pathlib import Path

from diffusers import DiffusionPipeline, UNet2DConditionModel

from asyncdiff import load_demo
from asyncdiff.model_files import demo_folder
from asyncdiff.zoo.specimen import randomise

WIDTH = 32


def load_narrow_demo() -> DiffusionPipeline:
    """Always the same; its pictures show nothing."""
    config = UNet2DConditionModel.load_config(demo_folder("unet") / "unet")
    levels = len(config["block_out_channels"])
    narrow = {**config, "block_out_channels": [WIDTH] * levels, "attention_head_dim": [1] * levels}
    unet = UNet2DConditionModel.from_config(narrow)
    randomise(unet.eval())
    return load_demo("unet", unet=unet)


def save_narrow_demo(folder: Path) -> Path:
    """Save it to a folder, as users save theirs."""
    load_narrow_demo().save_pretrained(folder)
    return folder
