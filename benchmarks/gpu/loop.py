"""A denoising loop and nothing else: a pipeline without text encoder and decoder."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.models import Subject, arguments_of, build

GUIDANCE_SCALE = 5.0
TINY_TOKENS = 7

Around = Callable[[int, Callable[[], Any]], Any]
"""Makes the denoiser call of a step, with what is measured around it."""


@dataclass(frozen=True)
class Setting:
    """Where and how large: the device, the number format, and whether only the structure is real."""

    device: torch.device
    dtype: torch.dtype
    tiny: bool


class Loop:
    """Calls its denoiser once a step, as diffusers' pipelines do, with fixed random conditioning.

    A batch of two is both branches of the guidance.
    """

    def __init__(self, subject: Subject, setting: Setting, denoiser: nn.Module | None = None, batch: int = 0) -> None:
        """Make the denoiser, or take one that is there.

        Args:
            batch: of one call; the subject's own if none is given.
        """
        config = {**subject.config, **subject.tiny} if setting.tiny else subject.config
        self.subject = subject
        self.setting = setting
        self.batch = batch or subject.batch
        self.shape = subject.tiny_latents if setting.tiny else subject.latents
        self.denoiser = denoiser or build(subject, config, setting.device, setting.dtype)
        setattr(self, subject.part, self.denoiser)
        self.scheduler = subject.scheduler()
        self.components = {subject.part: self.denoiser, "scheduler": self.scheduler}
        tokens = min(subject.tokens, TINY_TOKENS) if setting.tiny else subject.tokens
        self._given, self._beside = arguments_of(
            subject, config, self.shape, tokens, self.batch, setting.device, setting.dtype
        )

    @torch.no_grad()
    def __call__(self, calls: int, around: Around) -> Tensor:
        """The first `calls` steps of a generation; returns the latents."""
        scheduler, device = self.scheduler, self.setting.device
        scheduler.set_timesteps(self.subject.steps, device=device)
        generator = torch.Generator(device).manual_seed(0)
        latents = torch.randn(1, *self.shape, generator=generator, device=device, dtype=self.setting.dtype)
        latents = latents * getattr(scheduler, "init_noise_sigma", 1.0)
        for index, timestep in enumerate(scheduler.timesteps[:calls]):
            given = self._arguments(latents, timestep)
            predicted = around(index, partial(self._predict, given))
            if predicted.shape[1] != latents.shape[1]:
                predicted = predicted.chunk(2, dim=1)[0]  # the other half is a variance
            if self.batch > 1:
                plain, prompted = predicted.chunk(2)
                predicted = plain + GUIDANCE_SCALE * (prompted - plain)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        return latents

    def _predict(self, given: dict[str, Any]) -> Tensor:
        predicted: Tensor = self.denoiser(**given, return_dict=False)[0]
        return predicted

    def _arguments(self, latents: Tensor, timestep: Tensor) -> dict[str, Any]:
        scale = getattr(self.scheduler, "scale_model_input", None)
        sample = torch.cat([latents] * self.batch)
        if scale is not None:
            sample = scale(sample, timestep)
        if self._beside is not None:
            sample = torch.cat([sample, self._beside], dim=2)
        if self.subject.part == "transformer":
            timestep = timestep.expand(self.batch)
        if "img_ids" in self._given:
            timestep = timestep.to(sample.dtype) / 1000
        return {self.subject.main: sample, "timestep": timestep, **self._given}
