"""Every denoiser class of the installed diffusers, small, and the check that each can be divided."""

import importlib
import pkgutil
from collections.abc import Iterator

from asyncdiff.zoo.specimen import Specimen


def specimens() -> Iterator[Specimen]:
    """All specimens of this package, in alphabetical order of their names."""
    found: list[Specimen] = []
    for module in pkgutil.iter_modules(__path__, f"{__name__}."):
        found += getattr(importlib.import_module(module.name), "SPECIMENS", ())
    return iter(sorted(found, key=lambda specimen: specimen.name))
