"""How the whole suite is run: one thread in every process, no network, no limit on how long an example takes."""

# ruff: noqa: E402
import gc
import os

gc.disable()  # until all is imported: what libraries consist of is no garbage

os.environ.pop("COLUMNS", None)  # a console of the commands takes it over for good where it is set
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}  # before torch

import pytest
from hypothesis import settings

# Where other tests run on the same cores, times say nothing.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of a tiny pipeline are skipped where the installed diffusers has not got what it is built of."""
    # Here, not above: the process that only hands tests out needs none of it.
    import diffusers

    from tests.tiny import PIPELINES

    missing = {tiny.name: tiny.missing() for tiny in PIPELINES.values() if tiny.missing()}
    for item in items:
        callspec = getattr(item, "callspec", None)
        for value in callspec.params.values() if callspec else ():
            if isinstance(value, str) and value in missing:
                reason = f"diffusers {diffusers.__version__} has no {' and no '.join(missing[value])}"
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """What libraries and tests consist of stays to the end: no more looking for garbage in it, again and again."""
    gc.freeze()
    gc.set_threshold(20_000)
    gc.enable()
