"""What people put on a pipeline, made from random numbers: low-rank adapters, picture prompts, words, ControlNets."""

from string import ascii_lowercase
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention_processor import SD3IPAdapterJointAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterTimeImageProjection
from peft import LoraConfig
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from tests.tiny.base import TEXT_LENGTH, TinyPipeline, noise, randomise, text
from tests.tiny.flux import FLUX_WIDTHS, build_flux
from tests.tiny.sd3 import build_sd3, tiny_sd3_controlnet
from tests.tiny.stable_diffusion import build_sd15, tiny_controlnet, tiny_unet
from tests.tiny.text_encoders import tiny_text_encoder, tiny_tokenizer

SMALL_UNET: dict[str, Any] = dict(
    block_out_channels=(16, 32),
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    layers_per_block=1,
)
"""Two levels of SD 1.5's four, for tests of much else than the denoiser's structure."""


def build_small_unet(pipeline: Any = StableDiffusionPipeline, **components: Any) -> DiffusionPipeline:
    return build_sd15(pipeline, **{"unet": tiny_unet(**SMALL_UNET)} | components)


SMALL = TinyPipeline("unet", build_small_unet, lambda pipe: text(), "unet")
"""SD 1.5's pipeline with that denoiser: a third of the time."""


def build_two_controlnets(family: str) -> DiffusionPipeline:
    if family == "unet":
        unet = tiny_unet(**SMALL_UNET)
        nets = [tiny_controlnet(unet), tiny_controlnet(unet)]
        return build_small_unet(StableDiffusionControlNetPipeline, unet=unet, controlnet=nets)
    if family == "sd3":
        return build_sd3(StableDiffusion3ControlNetPipeline, controlnet=[tiny_sd3_controlnet(), tiny_sd3_controlnet()])
    nets = [FluxControlNetModel(**FLUX_WIDTHS | dict(num_layers=2, num_single_layers=1)) for _ in range(2)]
    return build_flux(FluxControlNetPipeline, controlnet=nets)


def build_pag() -> DiffusionPipeline:
    return build_small_unet(StableDiffusionPAGPipeline, pag_applied_layers=["mid"])


def build_with_words(family: str) -> DiffusionPipeline:
    """A pipeline that reads its prompt itself."""
    words = dict(text_encoder=tiny_text_encoder(), tokenizer=tiny_tokenizer())
    if family == "unet":
        return build_small_unet(**words)
    letters = [
        (piece, -float(number)) for number, piece in enumerate(["<pad>", "</s>", "<unk>", "▁", *ascii_lowercase])
    ]
    return build_flux(
        **words,
        text_encoder_2=T5EncoderModel(
            T5Config(vocab_size=len(letters), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
        ),
        tokenizer_2=T5Tokenizer(vocab=letters, extra_ids=0, model_max_length=TEXT_LENGTH),
    )


LORA_LAYERS = {
    # Layers inside of units, layers that are units of their own, and some that run on every device.
    "unet": ["to_q", "to_v", "ff.net.0.proj", "conv1", "conv_in", "conv_out", "linear_1"],
    "transformer": ["to_q", "to_v", "ff.net.0.proj", "context_embedder", "proj_mlp", "proj_out", "linear_1"],
}

PICTURE_TOKENS = 4
PICTURE_WIDTH = 16


def denoiser_name(pipe: DiffusionPipeline) -> str:
    return "unet" if hasattr(pipe, "unet") else "transformer"


def denoiser_of(pipe: DiffusionPipeline) -> nn.Module:
    return getattr(pipe, denoiser_name(pipe))


def lora_config(pipe: DiffusionPipeline, rank: int = 2, **config: Any) -> LoraConfig:
    return LoraConfig(r=rank, target_modules=LORA_LAYERS[denoiser_name(pipe)], init_lora_weights=False, **config)


def add_lora(pipe: DiffusionPipeline, name: str, seed: int, rank: int = 2, **config: Any) -> None:
    """An adapter as one that is being trained: put in by hand, always with the same weights."""
    torch.manual_seed(seed)
    denoiser_of(pipe).add_adapter(lora_config(pipe, rank, **config), adapter_name=name)


def lora_weights(pipe: DiffusionPipeline, seed: int, rank: int = 2) -> dict[str, Tensor]:
    """An adapter as a file holds it, made for such a pipeline."""
    kind = denoiser_name(pipe)
    weights: dict[str, Tensor] = {}
    for path, layer in denoiser_of(pipe).named_modules():
        name = path.removesuffix(".base_layer")  # where there are adapters already
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and name.endswith(tuple(LORA_LAYERS[kind])):
            outputs, inputs, *kernel = layer.weight.shape
            down, up = (rank, inputs, *kernel), (outputs, rank, *(1 for _ in kernel))
            weights[f"{kind}.{name}.lora_A.weight"] = 0.2 * noise(*down, seed=seed + len(weights))
            weights[f"{kind}.{name}.lora_B.weight"] = 0.2 * noise(*up, seed=seed + len(weights))
    return weights


def load_lora(pipe: DiffusionPipeline, name: str, seed: int, rank: int = 2, **options: Any) -> None:
    pipe.load_lora_weights(lora_weights(pipe, seed, rank), adapter_name=name, **options)


def unet_picture_prompt(pipe: DiffusionPipeline, seed: int = 5) -> dict[str, dict[str, Tensor]]:
    """An IP-Adapter for a UNet: picture embeddings to tokens, and their keys and values for each block."""
    width = pipe.unet.config.cross_attention_dim
    attentions = [
        module for name, module in pipe.unet.named_modules() if name.endswith("attn2") and hasattr(module, "to_k")
    ]
    layers: dict[str, Tensor] = {}
    for number, attention in enumerate(attentions):
        hidden = attention.to_k.weight.shape[0]
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{2 * number + 1}.{part}.weight"] = noise(hidden, width, seed=seed + len(layers)) / width**0.5
    return {"image_proj": _projection(width, seed), "ip_adapter": layers}


def flux_picture_prompt(pipe: DiffusionPipeline, seed: int = 5) -> dict[str, dict[str, Tensor]]:
    config = pipe.transformer.config
    inner = config.attention_head_dim * config.num_attention_heads
    width = config.joint_attention_dim
    layers: dict[str, Tensor] = {}
    for number in range(config.num_layers):
        for part in ("to_k_ip", "to_v_ip"):
            layers[f"{number}.{part}.weight"] = noise(inner, width, seed=seed + len(layers)) / width**0.5
            layers[f"{number}.{part}.bias"] = 0.1 * noise(inner, seed=seed + len(layers))
    return {"image_proj": _projection(width, seed), "ip_adapter": layers}


def _projection(width: int, seed: int) -> dict[str, Tensor]:
    return {
        "proj.weight": noise(PICTURE_TOKENS * width, PICTURE_WIDTH, seed=seed) / PICTURE_WIDTH**0.5,
        "proj.bias": 0.1 * noise(PICTURE_TOKENS * width, seed=seed + 1),
        "norm.weight": 1 + 0.1 * noise(width, seed=seed + 2),
        "norm.bias": 0.1 * noise(width, seed=seed + 3),
    }


def load_sd3_picture_prompt(pipe: DiffusionPipeline, seed: int = 5) -> None:
    """An IP-Adapter for SD 3: a resampler that knows the time, and attention to its tokens in every block."""
    config = pipe.transformer.config
    inner = config.attention_head_dim * config.num_attention_heads
    resampler = IPAdapterTimeImageProjection(
        embed_dim=PICTURE_WIDTH,
        output_dim=inner,
        hidden_dim=64,  # the number of heads is told from it: one of 64
        heads=1,
        depth=4,
        num_queries=PICTURE_TOKENS,
        timestep_in_dim=16,
    )
    randomise(resampler, seed)
    published = {_published_name(key): value for key, value in resampler.state_dict().items()}
    layers = {}
    for number in range(len(pipe.transformer.attn_processors)):
        processor = SD3IPAdapterJointAttnProcessor2_0(inner, inner, config.attention_head_dim, timesteps_emb_dim=64)
        randomise(processor, seed + number)
        layers |= {f"{number}.{key}": value for key, value in processor.state_dict().items()}
    pipe.load_ip_adapter(
        {"image_proj": published, "ip_adapter": layers},
        subfolder="",
        weight_name="",
        image_encoder_folder=None,
        low_cpu_mem_usage=False,
    )


# The parts of a layer have numbers in what is published.
_PUBLISHED_NAMES = {
    "ln0": "0.norm1",
    "ln1": "0.norm2",
    "attn.to_q": "0.to_q",
    "attn.to_kv": "0.to_kv",
    "attn.to_out.0": "0.to_out",
    "adaln_norm": "1.0",
    "ff.net.0.proj": "1.1",
    "ff.net.2": "1.3",
    "adaln_proj": "2.1",
}


def _published_name(key: str) -> str:
    if not key.startswith("layers."):
        return key
    _, number, rest = key.split(".", 2)
    part, _, kind = rest.rpartition(".")
    return f"layers.{number}.{_PUBLISHED_NAMES[part]}.{kind}"


def load_picture_prompt(pipe: DiffusionPipeline, *seeds: int) -> None:
    """One IP-Adapter for a UNet or FLUX for each seed."""
    if hasattr(pipe, "unet"):
        made = [unet_picture_prompt(pipe, seed) for seed in seeds]
        options: dict[str, Any] = dict(subfolder="", image_encoder_folder=None)
    else:
        made = [flux_picture_prompt(pipe, seed) for seed in seeds]
        options = dict(image_encoder_pretrained_model_name_or_path=None)
    pipe.load_ip_adapter(made, weight_name=[""] * len(made), **options)
