"""Every denoiser class of diffusers, small: checked; and the checks themselves, on what is wrong on purpose."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from asyncdiff import AsyncDiff, ConfigurationError
from asyncdiff.commands.app import app
from asyncdiff.commands.terminal import BAD_USAGE
from asyncdiff.denoiser.graph import Edge, Graph
from asyncdiff.exchange.local import LocalChannel
from asyncdiff.plan import division, partition
from asyncdiff.plan.course import Course
from asyncdiff.plan.partition import Partition
from asyncdiff.plan.schedule import Step
from asyncdiff.runtime.units import UnitHooks
from asyncdiff.zoo import matrix, specimens
from asyncdiff.zoo.catalogue import denoiser_classes
from asyncdiff.zoo.check import CheckFailedError, check
from asyncdiff.zoo.specimen import Specimen, noise, randomise
from tests.denoiser.test_trace import Sharing

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
EVERY = list(specimens())
BY_NAME = {specimen.name: specimen for specimen in EVERY}

# Of different nature each. The command is tried with UNet1DModel.
QUICK = [
    "ChromaTransformer2DModel (ControlNet)",  # glue that writes into a unit's output
    "CogVideoXTransformer3DModel",  # two outputs
    "MochiTransformer3DModel",  # a last block that hands on the text as it was
    "SD3Transformer2DModel",  # a last block that gives None
    "StableCascadeUNet (decoder)",  # lists in lists, blocks that are repeated
    "UNet2DConditionModel (ControlNet and T2I-Adapter)",  # glue that writes into skips, and one that does not
    "ZImageTransformer2DModel",  # lists of tensors
    "ZImageTransformer2DModel (ControlNet)",  # arguments that lie beside picture and text
]


def page_rows() -> set[str]:
    return {line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")}


def row(finding: Any) -> str:
    return f"| {' | '.join(matrix.as_row(finding))} |"


# Seen elsewhere as well: two outputs, and a last block that gives None, in the pipeline of SD 3; repeated blocks in the
# test of compiled ones; lists of tensors in the pipeline of Z-Image.
SEEN_ELSEWHERE = {
    "CogVideoXTransformer3DModel",
    "SD3Transformer2DModel",
    "StableCascadeUNet (decoder)",
    "ZImageTransformer2DModel",
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.whole) if name in SEEN_ELSEWHERE else name for name in QUICK]
)
def test_quick_part(name: str) -> None:
    finding = check(BY_NAME[name])
    assert row(finding) in page_rows(), "docs/models.md is out of date: make models"


@pytest.mark.whole
@pytest.mark.parametrize("specimen", EVERY, ids=lambda specimen: specimen.name.replace(" ", "_"))
def test_whole(specimen: Specimen) -> None:
    finding = check(specimen)
    assert row(finding) in page_rows(), "docs/models.md is out of date: make models"


def test_every_class_of_diffusers_has_a_specimen_or_a_reason() -> None:
    """Independently of the catalogue's rules: what the source files of diffusers' denoisers define."""
    source = Path(diffusers.__file__).parent / "models"
    defined = set()
    for path in [*source.glob("unets/*.py"), *source.glob("transformers/*.py")]:
        for name, bases in re.findall(r"^class (\w+)\(([^)]*)\)", path.read_text(encoding="utf-8"), re.MULTILINE):
            if re.search(r"\bModelMixin\b", bases):  # not those for Flax, which older versions have
                defined.add(name)
    exported = {name for name in defined if hasattr(diffusers, name)} - {"MotionAdapter"}
    assert len(exported) > 60
    assert exported <= set(denoiser_classes())
    without = {subject for subject in matrix.subjects() if isinstance(subject, str)}
    assert {kind for kind in without if "takes none" not in matrix.examine(kind).reason} == set()
    assert {specimen.kind for specimen in EVERY} == set(denoiser_classes()) - without
    assert len(BY_NAME) == len(EVERY), "two specimens of one name"


def test_the_page_lists_every_class() -> None:
    listed = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")][2:]
    expected = [subject if isinstance(subject, str) else subject.name for subject in matrix.subjects()]
    assert listed == expected, "docs/models.md is out of date: make models"
    assert f"diffusers {diffusers.__version__}" in PAGE.read_text()


def test_a_class_that_cannot_work_gives_its_user_the_reason() -> None:
    finding = matrix.examine("UVit2DModel")
    assert not finding.ok
    model = diffusers.UVit2DModel(
        hidden_size=8,
        cond_embed_dim=8,
        micro_cond_encode_dim=2,
        micro_cond_embed_dim=10,
        encoder_hidden_size=8,
        vocab_size=12,
        codebook_size=10,
        in_channels=8,
        block_out_channels=8,
        num_res_blocks=1,
        block_num_heads=1,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    pipe = diffusers.AmusedPipeline(None, None, None, model, diffusers.AmusedScheduler(mask_token_id=11))
    with pytest.raises(ConfigurationError) as caught:
        AsyncDiff(pipe, components=2, method="paper")
    assert str(caught.value).partition(" ")[2] == finding.reason.partition(" ")[2]  # but for the pipeline's name


def command(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["models", *arguments])


def test_the_command_prints_json_and_writes_a_page(tmp_path: Path) -> None:
    page = tmp_path / "models.md"
    done = command("UNet1DModel", "UVit2DModel", "--json", "--markdown", str(page))
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert [(entry["class"], entry["variant"], entry["ok"]) for entry in found] == [
        ("UNet1DModel", "", True),
        ("UNet1DModel", "trajectories", True),
        ("UVit2DModel", "", False),
    ]
    assert found[0]["units"] > 4 and 0.5 <= found[0]["balance"]["2"] < 0.7 and found[0]["balance"]["4"] < 0.5
    assert found[2]["reason"] and found[2]["balance"] == {"2": None, "3": None, "4": None}
    assert "1 of the 2 denoiser classes" in page.read_text()


def test_the_command_prints_a_table() -> None:
    done = command("UVit2DModel")
    assert done.exit_code == 0
    assert "live" in done.stdout and "N=4" in done.stdout and "no" in done.stdout


def test_the_command_refuses_what_is_no_class() -> None:
    done = command("NoSuchModel")
    assert done.exit_code == BAD_USAGE
    assert "NoSuchModel is no denoiser class that diffusers" in done.stderr


def test_a_specimen_that_fails_otherwise_is_a_row_too() -> None:
    broken = dataclasses.replace(BY_NAME["SD3Transformer2DModel"], config={"no_such_argument": 1})
    finding = matrix.examine(broken)
    assert not finding.ok and finding.reason.startswith("TypeError: ")


# What follows breaks one thing each, and expects the check that is there for it to say so.

SUBJECT = "SD3Transformer2DModel"


def changed_reads(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    plain = partition.wire

    def wire(graph: Graph, owners: Any, bases: Any) -> Partition:
        found = plain(graph, owners, bases)
        return dataclasses.replace(found, reads=tuple(map(change, found.reads)))

    monkeypatch.setattr(division, "wire", wire)


def test_a_missing_live_edge_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_reads(monkeypatch, lambda reads: reads - set(sorted(reads)[:1]))
    with pytest.raises(CheckFailedError, match="component 1 needs more than the live edges found"):
        check(BY_NAME[SUBJECT])


def test_a_live_edge_too_many_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_reads(monkeypatch, lambda reads: reads | {Edge(2, 0)} if reads else reads)
    with pytest.raises(CheckFailedError, match="component 1 does not need context_embedder"):
        check(BY_NAME[SUBJECT])


@dataclasses.dataclass(frozen=True)
class _Sharing(Specimen):
    def build(self) -> nn.Module:
        model = Sharing()
        randomise(model)
        return model


def test_a_module_called_both_inside_and_outside_of_units() -> None:
    subject = _Sharing("Sharing", {}, lambda: {"hidden": noise(2, 4), "timestep": torch.tensor([0.9])}, time="timestep")
    assert check(subject).units == 8


def test_bad_balance_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        partition, "_lightest_maximum", lambda loads, parts, most_bytes: sum(load.time for load in loads)
    )
    with pytest.raises(CheckFailedError, match="N=2: the heaviest component costs"):
        check(BY_NAME[SUBJECT])


def test_fresh_instead_of_stale_inputs_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = LocalChannel.made

    def made(self: LocalChannel, rank: int, edge: Edge, tensor: Any) -> None:
        for store in self.stores.values():
            if edge in store._storage.spans:
                store.newest(edge, store._steps[0]).copy_(tensor)
        plain(self, rank, edge, tensor)

    monkeypatch.setattr(LocalChannel, "made", made)
    with pytest.raises(CheckFailedError, match="N=2 S=1 w=2: step 2 is not what the recurrence"):
        check(BY_NAME[SUBJECT])


def test_older_inputs_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, late = LocalChannel.end_round, dict[Any, Tensor]()

    def end_round(self: LocalChannel, version: int) -> None:
        plain(self, version)
        for store in self.stores.values():
            store.settle()
            for buffer in store._buffers.values():
                held = buffer.held
                made = held.newest.clone()
                held.newest.copy_(late.get(buffer, held.arriving(0, len(made))[0]))
                late[buffer] = made

    monkeypatch.setattr(LocalChannel, "end_round", end_round)
    with pytest.raises(CheckFailedError, match="N=2 S=1 w=2: step 3 is not what the recurrence"):
        check(BY_NAME[SUBJECT])


def test_a_wrong_label_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Course.step

    def step(self: Course, index: int) -> Step:
        found = plain(self, index)
        return dataclasses.replace(found, tasks=tuple(dataclasses.replace(task, label=index) for task in found.tasks))

    monkeypatch.setattr(Course, "step", step)
    with pytest.raises(CheckFailedError, match=r"N=2 S=2 w=1: step [23] is not what the recurrence"):
        check(BY_NAME[SUBJECT])


def test_a_warm_up_that_differs_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = UnitHooks.walk

    def walk(self: UnitHooks, *given: Any) -> Any:
        (result,) = plain(self, *given)
        return (result * (1 + 1e-6),)

    monkeypatch.setattr(UnitHooks, "walk", walk)
    with pytest.raises(CheckFailedError, match="step 1 is not what the recurrence"):
        check(BY_NAME[SUBJECT])
