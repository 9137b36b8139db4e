"""LoRA files by name and scale, put on a pipeline."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from asyncdiff import ConfigurationError, ModelError
from asyncdiff.lora import Lora, put_on, read_lora
from tests.tiny import PIPELINES
from tests.tiny.narrow import load_narrow_demo
from tests.workers.drawing import draw, save_adapter

NAME = "pytorch_lora_weights.safetensors"


def test_a_file_and_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.safetensors", "b=2.safetensors", "a.bin"):
        Path(name).touch()
    assert read_lora("a.safetensors") == Lora(tmp_path / "a.safetensors", 1.0)
    assert read_lora("a.safetensors=-0.5") == Lora(tmp_path / "a.safetensors", -0.5)
    assert read_lora("b=2.safetensors") == Lora(tmp_path / "b=2.safetensors", 1.0)
    for wrong, sentence in (
        ("c.safetensors", "there is no file 'c.safetensors'"),
        ("a.safetensors=nan", "the scale of a LoRA is a finite number, not 'nan'"),
        ("a.safetensors=much", "the scale of a LoRA is a number, not 'much'"),
        ("a.bin=1", "'a.bin' is no .safetensors file"),
    ):
        with pytest.raises(ConfigurationError, match=sentence):
            read_lora(wrong)


def test_it_is_what_the_pipelines_own_methods_do(tmp_path: Path) -> None:
    save_adapter(tmp_path)
    plain, by_hand, pipe = load_narrow_demo(), load_narrow_demo(), load_narrow_demo()
    for each in (plain, by_hand, pipe):
        each.set_progress_bar_config(disable=True)
    by_hand.load_lora_weights(str(tmp_path), weight_name=NAME, adapter_name="a")
    by_hand.set_adapters(["a"], [0.5])
    put_on(pipe, [Lora(tmp_path / NAME, 0.5)])
    pictures = [torch.tensor(draw(each, output_type="np")) for each in (plain, by_hand, pipe)]
    assert torch.equal(pictures[1], pictures[2]) and not torch.equal(pictures[0], pictures[2])


def test_what_cannot_be_put_on(tmp_path: Path) -> None:
    without_words = PIPELINES["ddim"].build()
    with pytest.raises(ConfigurationError, match="DDIMPipeline takes no LoRA"):
        put_on(without_words, [Lora(tmp_path / NAME)])
    save_file({"of.another.model": torch.zeros(2)}, tmp_path / NAME)
    with pytest.raises(ModelError, match=r"pytorch_lora_weights\.safetensors"):
        put_on(load_narrow_demo(), [Lora(tmp_path / NAME)])
