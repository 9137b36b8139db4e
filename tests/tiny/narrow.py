"""The demo pipelines with denoisers of their form, narrow and of few layers: for what is not about pictures."""

from pathlib import Path

from diffusers import CogView4Transformer2DModel, DiffusionPipeline, UNet2DConditionModel

from asyncdiff import load_demo
from asyncdiff.model_files import demo_folder
from asyncdiff.zoo.specimen import randomise

WIDTH = 16


def load_narrow_demo() -> DiffusionPipeline:
    """Always the same; its pictures show nothing."""
    config = UNet2DConditionModel.load_config(demo_folder("unet") / "unet")
    narrow = {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "block_out_channels": [WIDTH] * 2,
        "norm_num_groups": WIDTH,
        "attention_head_dim": [1] * 2,
        "layers_per_block": 1,
    }
    unet = UNet2DConditionModel.from_config({**config, **narrow})
    randomise(unet.eval())
    return load_demo("unet", unet=unet)


def save_narrow_demo(folder: Path) -> Path:
    """Save it to a folder, as users save theirs."""
    load_narrow_demo().save_pretrained(folder)
    return folder


def save_narrow_demos(folder: Path) -> None:
    """Save both to a folder, by their names."""
    save_narrow_demo(folder / "unet")
    config = CogView4Transformer2DModel.load_config(demo_folder("dit") / "transformer")
    narrow = {"num_layers": 2, "attention_head_dim": WIDTH, "num_attention_heads": 2}
    transformer = CogView4Transformer2DModel.from_config({**config, **narrow})
    randomise(transformer.eval())
    load_demo("dit", transformer=transformer).save_pretrained(folder / "dit")
