"""A setting's name, default, check and help text stand in one place; all that shows settings says the same."""

import dataclasses
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from asyncdiff import AsyncDiff, Method, SplitError
from asyncdiff.commands.evaluate import evaluate
from asyncdiff.commands.generate import generate
from asyncdiff.commands.serve import serve
from asyncdiff.settings import Knob, Settings, in_options, knobs

README = Path(__file__).parents[1] / "README.md"
KNOBS = {knob.name: knob for knob in knobs()}


def plain(text: str) -> str:
    return " ".join(text.split())


def row(knob: Knob) -> str:
    default = "–" if knob.default is None else f"`{knob.default!r}`"
    return f"| `{knob.name}` | {knob.help} | {default} |"


def table() -> str:
    head = "| setting | meaning | default |\n| --- | --- | --- |\n"
    return head + "\n".join(map(row, KNOBS.values()))


def test_asyncdiff_takes_every_setting_with_its_default() -> None:
    _, *taken = inspect.signature(AsyncDiff).parameters.values()
    assert [(one.name, one.default) for one in taken] == [(knob.name, knob.default) for knob in KNOBS.values()]
    annotations = {own.name: own.type for own in dataclasses.fields(Settings)}
    assert {one.name: one.annotation for one in taken} == annotations


@pytest.mark.parametrize("name", KNOBS)
def test_its_documentation_says_what_they_mean(name: str) -> None:
    assert plain(f"{name}: {KNOBS[name].help}") in plain(AsyncDiff.__doc__ or "")


def test_the_readme_has_a_table_of_them() -> None:
    text = README.read_text(encoding="utf-8")
    found = re.search(r"<!-- settings -->\n(.*?)\n?<!-- /settings -->", text, re.DOTALL)
    assert found is not None
    assert found[1] == table(), f"between the two comments in README.md must stand:\n{table()}"


@pytest.mark.parametrize("command", [generate, evaluate, serve])
def test_the_commands_have_an_option_for_each(command: Any) -> None:
    taken = inspect.signature(command).parameters
    without = [knob for knob in KNOBS.values() if not knob.is_option]
    assert [knob.name for knob in without] == ["place", "executor", "process_group"]
    assert not {"place", "process_group"} & taken.keys()  # where its ranks run, each command decides
    for knob in (knob for knob in KNOBS.values() if knob.is_option):
        parameter = taken[knob.option.replace("-", "_")]
        (option,) = parameter.annotation.__metadata__
        text = f"JSON file with {knob.help}" if knob.name == "split" else knob.help  # a list of lists
        names = f"--{knob.option}"
        if knob.kinds == (bool,) and knob.default is None:  # what is chosen by itself can be told to be off, too
            names += f"/--no-{knob.option}"
        assert (option.default, option.help, option.min) == (names, text, knob.least)
        assert parameter.default == knob.default


def test_asyncdiff_passes_on_what_it_is_given() -> None:
    wanted = {
        "components": 3,
        "stride": 2,
        "warmup": 5,
        "guidance": 2,
        "time_shift": True,
        "split": [["a"], ["b"], ["c"]],
        "bridge": 2,
        "max_error": 0.5,
        "cooldown": 1,
        "resync_every": 4,
        "shard": True,
        "place": {"vae": 0},
        "share_decode": True,
        "method": Method("linear"),
        "executor": "distributed",
        "process_group": object(),
        "backend": "gloo",
        "timeout": 7.0,
    }
    seen = []

    class StopError(Exception):
        pass

    def refuse(pipe: Any) -> Any:
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("asyncdiff.api.find_denoisers", refuse)
        patch.setattr("asyncdiff.api.Settings", lambda *given: seen.append(Settings(*given)))
        for given in (wanted, {"target_speedup": 2.5}, {"tokens": 4, "fresh": True}):
            with pytest.raises(StopError):
                AsyncDiff(SimpleNamespace(components={}), **given)  # type: ignore[arg-type]
    assert seen == [Settings(**wanted), Settings(target_speedup=2.5), Settings(tokens=4, fresh=True)]  # type: ignore[arg-type]
    assert wanted.keys() | {"target_speedup", "tokens", "fresh"} == KNOBS.keys(), (
        "a setting that this test does not give"
    )


def test_a_split_tells_the_number_of_components() -> None:
    assert Settings(split=[["a"], ["b"]]).told_components == 2
    with pytest.raises(SplitError, match="has 1 lists of module names, but components=2"):
        Settings(components=2, split=[["a"]])


def test_numbers_may_be_of_another_library() -> None:
    found = Settings(components=np.int64(3), stride=np.int32(2), max_error=np.float32(0.5), timeout=np.float64(7))
    assert found == Settings(components=3, stride=2, max_error=0.5, timeout=7.0)
    assert [type(found.components), type(found.stride), type(found.max_error)] == [int, int, float]


def test_sentences_are_said_in_the_words_of_the_command_line() -> None:
    sentence = "bridge and target_speedup both say it; guidance=2, resync_every, process_group"
    assert (
        in_options(sentence, "--")
        == "--bridge and --target-speedup both say it; --guidance-devices=2, --resync-every, process_group"
    )
