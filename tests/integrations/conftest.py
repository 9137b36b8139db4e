"""What all tests of the nodes start from."""

from collections.abc import Iterator

import pytest

from tests.integrations.comfyui import ComfyUI, loaded


@pytest.fixture
def comfyui(monkeypatch: pytest.MonkeyPatch) -> Iterator[ComfyUI]:
    """One that has our nodes, on a machine that has no key."""
    for name in ("ASYNCDIFF_ADDRESS", "ASYNCDIFF_API_KEY", "ASYNCDIFF_KEYS_FILE"):
        monkeypatch.delenv(name, raising=False)
    with loaded() as own:
        yield own
