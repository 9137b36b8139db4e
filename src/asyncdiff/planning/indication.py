"""How close the demo models' pictures stay to the ordinary ones: an indication of what a way does to a picture."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Indication:
    """Decibels of a demo model's pictures against the ordinary ones, on average; more is closer.

    Attributes:
        unet, dit: of the two demo models.
        components: of what was measured; more than was asked for, where that was not.
    """

    unet: float
    dit: float
    components: int

    @property
    def least(self) -> float:
        """Of the model that is farther off."""
        return min(self.unet, self.dit)


Key = tuple[int, int, int]
"""Components, stride and bridge."""


def read_indications() -> Mapping[Key, Indication]:
    """All that were measured. `python -m benchmarks.quality.indication` has written the file."""
    text = files("asyncdiff.planning").joinpath("indication.json").read_text(encoding="utf-8")
    points = json.loads(text)["points"]
    return {
        (point["components"], point["stride"], point["bridge"]): Indication(
            point["unet"], point["dit"], point["components"]
        )
        for point in points
    }


def indication_of(known: Mapping[Key, Indication], components: int, stride: int, bridge: int) -> Indication | None:
    """What was measured of a way, or of one like it with the next more components; None where neither was."""
    fitting = [key for key in known if key[0] >= components and key[1:] == (stride, bridge)]
    if not fitting or (components == 1 and (1, stride, bridge) not in known):
        return None
    return known[min(fitting)]
