"""Every promise has tests that `make test` runs, and CONTRIBUTING.md names them."""

import re
from pathlib import Path

import pytest

from tests.promises import PROMISES, as_table

ROOT = Path(__file__).parents[1]
NAMED = sorted({test for tests in PROMISES.values() for test in tests})


class _Collected:
    """A plugin that keeps the ids of what is collected and not deselected."""

    def __init__(self) -> None:
        self.ids: list[str] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.ids = [item.nodeid for item in session.items]


@pytest.fixture(scope="module")
def collected() -> list[str]:
    """What `make test` would run of the files that are named."""
    plugin = _Collected()
    files = sorted({str(ROOT / test.partition("::")[0]) for test in NAMED})
    options = ["--collect-only", "-qq", "--rootdir", str(ROOT), "-m", "not whole", "-p", "no:xdist"]
    assert pytest.main([*options, "-p", "no:cacheprovider", *files], plugins=[plugin]) == pytest.ExitCode.OK
    return plugin.ids


@pytest.mark.parametrize("test", NAMED)
def test_what_is_named_is_there_and_not_left_to_the_long_run(test: str, collected: list[str]) -> None:
    assert any(re.match(rf"{re.escape(test)}(\[|::|/|$)", found) for found in collected)


def test_no_promise_is_without_a_test() -> None:
    assert all(PROMISES.values())


def test_the_table_in_contributing_is_made_of_them() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- promises -->\n(.*?)\n?<!-- /promises -->", text, re.DOTALL)
    assert found is not None
    assert found[1] == as_table(), "between the two comments in CONTRIBUTING.md: python -m tests.promises"
