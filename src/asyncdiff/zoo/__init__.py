"""Every denoiser class of the installed diffusers, small, and the check that each can be divided."""

import importlib
import pkgutil
from collections.abc import Iterator

import diffusers

from asyncdiff.zoo.specimen import Specimen


def specimens() -> Iterator[Specimen]:
    """All specimens of classes that the installed diffusers has, in alphabetical order of their names."""
    found: list[Specimen] = []
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        found += getattr(importlib.import_module(module.name), "SPECIMENS", ())
    found = [specimen for specimen in found if hasattr(diffusers, specimen.kind)]
    return iter(sorted(found, key=lambda specimen: specimen.name))
