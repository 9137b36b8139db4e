"""The package works from a folder on the path too, where nothing says which version it is."""

import importlib.metadata

import pytest

from asyncdiff.runtime.statements import about_settings
from asyncdiff.settings import Settings
from asyncdiff.versions import NOT_INSTALLED, version_of


def test_a_folder_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a custom node of ComfyUI carries it, or `make bench-gpu` runs it: the packages' own words are not there."""
    installed = about_settings(Settings())
    real = importlib.metadata.version

    def version(name: str) -> str:
        if name == "asyncdiff":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert version_of("asyncdiff") == NOT_INSTALLED
    assert version_of("torch") == real("torch")
    assert about_settings(Settings()).exact != installed.exact  # a rank of another version is told so
