"""The processes of `asyncdiff.launch` from the server that has imported everything, in place of new ones."""

from typing import Any

import pytest
from torch.distributed.launcher.api import LaunchConfig

from tests.processes import preload_forkserver


def fork_processes(monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    """For one test: what `LaunchConfig` is given otherwise stays, but for what is named here."""

    def forking(**given: Any) -> LaunchConfig:
        return LaunchConfig(**given | {"start_method": "forkserver", **more})

    preload_forkserver()
    # For a log that nobody keeps, the launcher looks through all modules for the name of the method that it is in.
    monkeypatch.setattr("torch.distributed.elastic.rendezvous.dynamic_rendezvous.get_method_name", lambda: "")
    monkeypatch.setattr("asyncdiff.launch.LaunchConfig", forking)
