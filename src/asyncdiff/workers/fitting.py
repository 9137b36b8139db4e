"""Whether settings fit the number of processes that are to have them. Pure."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from asyncdiff.errors import ConfigurationError
from asyncdiff.exchange.backends import check_backend
from asyncdiff.request.signature import near
from asyncdiff.settings import Settings


def settings_for(devices: int, given: Mapping[str, Any]) -> Settings:
    """The settings of so many processes, if they fit.

    Raises:
        ConfigurationError: they do not, or there is no such setting.
        SplitError: a split that is none.
    """
    known = [own.name for own in dataclasses.fields(Settings)]
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        advice = near(unknown, known) or f"{', '.join(known)} are"
        raise ConfigurationError(f"there is no setting {unknown!r}; {advice}")
    settings = Settings(**given)
    check_backend(settings.backend)
    if settings.process_group is not None or settings.executor == "local":
        raise ConfigurationError("Workers have processes of their own: leave process_group and executor out")
    components, stride, groups = settings.told_components, settings.stride, settings.guidance or 1
    if devices == 1:
        settings = dataclasses.replace(settings, executor="local", components=components or 1)
        components = settings.told_components
    else:
        settings = dataclasses.replace(settings, executor="distributed")
    mesh = None if components is None else settings.mesh(components)
    if mesh is not None and mesh.world_size != devices:
        raise ConfigurationError(
            f"{settings.demand(mesh)} devices, not devices={devices}; use devices={mesh.world_size}"
        )
    if devices % groups or devices // groups < stride:
        raise ConfigurationError(
            f"devices={devices} cannot be shared out among guidance={groups} groups of at least stride={stride}; use "
            f"devices={groups * max(stride, -(-devices // groups))}"
        )
    return settings
