"""Other image pipelines whose denoiser is a transformer."""

from diffusers import DiffusionPipeline, DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

from tests.tiny.base import SIZE, TinyPipeline, assemble, masked_text, tiny_vae


def build_pixart() -> DiffusionPipeline:
    transformer = PixArtTransformer2DModel(
        sample_size=SIZE,
        num_layers=4,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        caption_channels=16,
        out_channels=8,  # noise and its variance
        norm_type="ada_norm_single",
    )
    return assemble(
        PixArtAlphaPipeline,
        tokenizer=None,
        text_encoder=None,
        vae=tiny_vae(),
        transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(),
    )


PIPELINES = (
    TinyPipeline("pixart", build_pixart, lambda pipe: masked_text(use_resolution_binning=False), "transformer"),
)
