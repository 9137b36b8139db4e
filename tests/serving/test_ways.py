"""What a page offers is what the service accepts."""

import dataclasses
import json
from typing import Any

import pytest

from asyncdiff.serving.ways import sequential_way, ways_of
from asyncdiff.serving.wire import Service, read_request
from asyncdiff.settings import Settings
from asyncdiff.workers.fitting import settings_for
from tests.serving.stand_ins import LIMITS, SIGNATURE


def settings_of(service: Service, own: Any) -> Settings:
    body = json.dumps({"prompt": "x", "asyncdiff": dict(own)}).encode()
    return settings_for(service.devices, read_request(body, service, SIGNATURE).settings)


def service_of(devices: int, **settings: Any) -> Service:
    return Service("stand-in", devices, settings, 4, LIMITS)


SERVICES = [
    service_of(1),
    service_of(2),
    service_of(2, components=2, warmup=2, method="paper"),
    service_of(2, tokens=2),
    service_of(3, components=2, stride=2),
    service_of(4, guidance=2, components=2, target_speedup=3.0),
    service_of(2, split=[["down_blocks", "mid_block"], ["up_blocks"]]),
]


@pytest.mark.parametrize("service", SERVICES, ids=str)
def test_every_way_is_accepted_and_uses_all_devices(service: Service) -> None:
    names = [way.name for way in ways_of(service)]
    assert names[0] == "service" and len({*names}) == len(names) > 1
    assert ("guidance" in names) == (service.devices % 2 == 0)
    for way in ways_of(service):
        settings = settings_of(service, way.settings)
        if way.name != "service":
            assert settings.mesh(settings.told_components or 1).world_size == service.devices
            assert (settings.bridge == 2) == way.name.endswith("-bridge") and settings.target_speedup is None
        assert settings.warmup == service.settings.get("warmup", Settings().warmup), (
            "what is no matter of devices stays"
        )


@pytest.mark.parametrize("service", SERVICES, ids=str)
def test_the_sequential_way_computes_all_steps_in_full_on_every_device(service: Service) -> None:
    way = sequential_way(service)
    assert way is not None
    settings = settings_of(service, way)
    schedule = settings.schedule()
    assert (
        schedule.warmup >= LIMITS.steps
        and schedule.bridge == 1
        and not schedule.by_tokens
        and not settings.share_decode
    )
    assert settings.mesh(settings.told_components or 0).guidance == 1, "else the devices would share a step out"


def test_divided_weights_stay_as_they_are() -> None:
    service = service_of(2, shard=True)
    assert [way.name for way in ways_of(service)] == ["service"] and sequential_way(service) is None


def test_a_way_is_json() -> None:
    for service in SERVICES:
        assert json.loads(json.dumps([dataclasses.asdict(way) for way in ways_of(service)]))
