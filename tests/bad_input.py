"""What cannot work, however it is given, and what its error must say: one table for Python, commands and files."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.hooks import FirstBlockCacheConfig
from safetensors.torch import load_file, save_file
from torch import nn

from asyncdiff import ConfigurationError, ExchangeError
from tests.tiny import PIPELINES
from tests.tiny.base import assemble, ddim, tiny_vae
from tests.tiny.stable_diffusion import TEXT_FREE_SD, tiny_unet
from tests.tiny.text_encoders import tiny_text_encoder, tiny_tokenizer

NAN, INF = float("nan"), float("inf")
HUGE = 10**400  # no float is as large


def _brief(value: Any) -> str:
    """A name for a row, the same in every process."""
    if isinstance(value, int) and abs(value) > 10**20:
        return "a huge number"
    text = repr(value)
    return type(value).__name__ if isinstance(value, set) or " at 0x" in text or len(text) > 60 else text


@dataclass(frozen=True)
class Setting:
    """Arguments of `AsyncDiff` and of `Settings`."""

    arguments: dict[str, Any]
    sentence: str
    error: type[Exception] = ConfigurationError

    def __str__(self) -> str:
        return ", ".join(f"{name}={_brief(value)}" for name, value in self.arguments.items())


def _numbers(name: str, demand: str, *values: Any, shown: str = "") -> list[Setting]:
    return [Setting({name: value}, f"{name} must be {demand}, not {shown or repr(value)}") for value in values]


_WHOLE = ("components", "stride", "warmup", "guidance", "bridge", "resync_every")
_REAL = ("target_speedup", "max_error", "timeout")
_NEEDED = ("stride", "warmup", "time_shift", "method", "executor", "timeout")  # those that cannot be None

SETTINGS: list[Setting] = [
    *(
        row
        for name in _WHOLE
        for row in _numbers(
            name, "a whole number of at least 1", 0, -1, True, 1.5, 2.0, NAN, "2", [2], np.float64(2), torch.tensor(2)
        )
    ),
    *_numbers("cooldown", "a whole number of at least 0", -1, False, 0.5, "1", INF),
    *(
        row
        for name in ("components", "stride", "guidance")
        for row in _numbers(name, "a whole number of at most 1024", 1025)
    ),
    *_numbers("components", "a whole number of at most 1024", HUGE, shown=f"{str(HUGE)[:60]}…"),
    *_numbers("stride", "a whole number of at most 1024", 10**5000, shown="one of thousands of digits"),
    *(
        row
        for name in _REAL
        for row in _numbers(name, "a number above 0", 0, -1.0, NAN, -INF, True, "fast", [1.0], 1j, np.float32(0))
    ),
    *(row for name in _REAL for row in _numbers(name, "a finite number", INF)),
    *(row for name in _REAL for row in _numbers(name, "a finite number", HUGE, shown=f"{str(HUGE)[:60]}…")),
    *_numbers("timeout", "a number of at most 1e+09", 2e9),
    *_numbers("time_shift", "True or False", 1, 0, "yes", np.bool_(True)),
    *_numbers("share_decode", "True or False", 1, 0, "yes", np.bool_(True)),
    *_numbers("method", "'paper' or 'forecast' or a Method", "magic", "", "Paper", 1, [], {}),
    *_numbers("executor", "'auto', 'local' or 'distributed'", "threads", "", True, []),
    *_numbers("backend", "a name, for instance 'gloo'", "", 1, True, ["gloo"]),
    *(Setting({name: None}, f"{name} must be ") for name in _NEEDED),
    Setting({"process_group": object(), "executor": "local"}, "process_group names the processes that take part, but"),
    Setting({"bridge": 2, "target_speedup": 2.0}, "bridge and target_speedup both say how many steps are bridged"),
]


@dataclass(frozen=True)
class Split:
    """A split. Whether it is a division of modules shows at once; whether it is one of this denoiser, later."""

    value: Any
    sentence: str

    def __str__(self) -> str:
        return _brief(self.value)


_LISTS = "a split is a list of lists of module names, one for each component, not "
_NAMES = "every component of a split is a list of at least one module name; component "

SPLITS: list[Split] = [
    *(Split(value, f"{_LISTS}{value!r}") for value in ([], {}, 5, 1.5, True, "transformer_blocks.0", {"a": ["b"]})),
    Split([[]], f"{_NAMES}0 is []"),
    Split([["a"], []], f"{_NAMES}1 is []"),
    Split(["a", "b"], f"{_NAMES}0 is 'a'"),
    Split([["a"], "b"], f"{_NAMES}1 is 'b'"),
    Split([["a"], None], f"{_NAMES}1 is None"),
    Split([["a"], [5]], f"{_NAMES}1 is [5]"),
    Split([[""], ["b"]], f"{_NAMES}0 is ['']"),
    Split([["a", ["b"]]], f"{_NAMES}0 is ['a', ['b']]"),
    Split([["a"], ["b", "a"]], "'a' is named twice in the split"),
    Split([["a", "a"]], "'a' is named twice in the split"),
    Split([["a.b"], ["a"]], "'a.b' is named twice in the split: it is in 'a'"),
    Split([["a"], ["a.b.c"]], "'a.b.c' is named twice in the split: it is in 'a'"),
]

SPLITS_IN_PYTHON: list[Split] = [
    Split(np.array([1, 2]), f"{_LISTS}array([1, 2])"),
    Split({"a", "b"}, _LISTS),
    Split((name for name in "ab"), f"{_LISTS}<generator"),
    Split([{"a"}], f"{_NAMES}0 is {{'a'}}"),
    Split([[None]], f"{_NAMES}0 is [None]"),
]

FILES_OF_SPLITS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is no JSON"),
    "text": (b"transformer_blocks.0\n", "is no JSON"),
    "cut off": (b'[["a"], ["b"', "is no JSON"),
    "python": (b"[['a'], ['b']]", "is no JSON"),
    "binary": (b"\xff\xfe\x00", "is no JSON"),
    "deep": (b"[" * 100_000, "is no JSON"),
}

# Of a denoiser with conv_in, down_blocks, mid_block and up_blocks.
SPLITS_OF_A_UNET: list[Split] = [
    Split([["down_blocks"], ["blocks"]], "'blocks' in the split"),
    Split([["down_blocks "], ["up_blocks"]], "'down_blocks ' in the split"),
    Split(
        [["down_blocks.0.resnets.0.conv1.weight"], ["up_blocks"]], "'down_blocks.0.resnets.0.conv1.weight' in the split"
    ),
    Split(
        [["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"], ["up_blocks"]],
        "attn1.to_q' in the split lies inside the unit 'down_blocks.0.attentions.0.transformer_blocks.0.attn1', which",
    ),
]


class _Layers(nn.Module):
    """A denoiser of so many layers, and one that is never called."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(count))
        self.spare = nn.Linear(4, 4)

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        for layer in self.layers:
            sample = layer(sample)
        return (sample,)


class _Weightless(nn.Module):
    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> tuple[torch.Tensor]:
        return (sample,)


class _Timeless(nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return sample


class Pipeline:
    """The least that a pipeline can be."""

    def __init__(self, **components: Any) -> None:
        self.components = components
        vars(self).update(components)


def _with(name: str, **changed: Any) -> Callable[[], Any]:
    """A tiny pipeline in which a part is another one."""

    def build() -> Any:
        pipe = PIPELINES[name].build()
        for part, value in changed.items():
            setattr(pipe, part, value)
        return pipe

    return build


def _compiled() -> Any:
    pipe = PIPELINES["sd3"].build()
    pipe.transformer.compile(backend="eager")
    return pipe


def _wrapped() -> Any:
    pipe = PIPELINES["sd3"].build()
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    return pipe


def _cached() -> Any:
    pipe = PIPELINES["flux"].build()
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    return pipe


_NO_PIPELINE = "AsyncDiff takes a diffusers pipeline that is loaded, not "

PIPES: dict[str, tuple[Callable[[], Any], str]] = {
    "None": (lambda: None, f"{_NO_PIPELINE}None"),
    "a name": (lambda: "some/model", f"{_NO_PIPELINE}'some/model'"),
    "a number": (lambda: 2, f"{_NO_PIPELINE}2"),
    "a class": (lambda: StableDiffusionPipeline, f"{_NO_PIPELINE}the class StableDiffusionPipeline"),
    "a denoiser": (lambda: _Layers(2), f"{_NO_PIPELINE}a module (_Layers)"),
    "a list": (lambda: [Pipeline()], f"{_NO_PIPELINE}["),
    "a dict": (lambda: {"unet": 1}, f"{_NO_PIPELINE}{{'unet': 1}}"),
    "parts that are none": (lambda: type("Odd", (), {"components": ["unet"]})(), f"{_NO_PIPELINE}<"),
    "no parts": (Pipeline, "Pipeline has no denoiser: a torch module among its components"),
    "no denoiser": (_with("sd3", transformer=None), "StableDiffusion3Pipeline has no denoiser"),
    "a denoiser without time": (
        lambda: Pipeline(unet=_Timeless(), scheduler=ddim()),
        "its 'unet' (_Timeless) takes none",
    ),
    "a denoiser without weights": (
        lambda: Pipeline(unet=_Weightless(), scheduler=ddim()),
        "Pipeline has a denoiser without weights (_Weightless)",
    ),
    "no scheduler": (_with("sd3", scheduler=None), "StableDiffusion3Pipeline has no scheduler: a part with"),
    "a scheduler that is none": (
        lambda: Pipeline(unet=_Layers(2), scheduler="ddim"),
        "Pipeline has no scheduler: a part with set_timesteps() and step()",
    ),
    "compiled whole": (_compiled, "the 'transformer' is compiled as a whole"),
    "compiled and wrapped": (_wrapped, "the 'transformer' is compiled as a whole"),
    "cached": (_cached, "the 'transformer' has a cache enabled"),
}

# What a denoiser is divided into shows in its first call.
INDIVISIBLE: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "one unit": (
        lambda: Pipeline(unet=_Layers(1), scheduler=ddim()),
        {"components": 2},
        "has 1 units that can be given to a device, which is too few for components=2; at most components=1",
    ),
    "three components of two units": (
        lambda: Pipeline(unet=_Layers(2), scheduler=ddim()),
        {"components": 3},
        "has 2 units that can be given to a device, which is too few for components=3; at most components=2",
    ),
    "a split of what is not called": (
        lambda: Pipeline(unet=_Layers(2), scheduler=ddim()),
        {"split": [["layers.0"], ["spare"]]},
        "'spare' in the split: this denoiser calls no unit in any of them",
    ),
}

# What torchrun tells.
_TOLD = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def _told(**changed: str) -> dict[str, str]:
    return {**_TOLD, **changed}


# What it may tell wrongly, with the arguments beside it.
ENVIRONMENTS: list[tuple[dict[str, str], dict[str, Any], type[Exception], str]] = [
    ({}, {}, ExchangeError, "(RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set)"),
    ({"RANK": "0", "WORLD_SIZE": "1"}, {}, ExchangeError, "(MASTER_ADDR, MASTER_PORT not set)"),
    (_told(RANK="first"), {}, ConfigurationError, "RANK in the environment must be a whole number"),
    (_told(RANK="-1"), {}, ConfigurationError, "RANK in the environment must be a whole number"),
    (_told(WORLD_SIZE="two"), {}, ConfigurationError, "WORLD_SIZE in the environment must be a whole number"),
    (_told(WORLD_SIZE=""), {}, ConfigurationError, "as torchrun sets it, not ''"),
    (_told(RANK="2"), {}, ConfigurationError, "RANK=2 in the environment, but WORLD_SIZE=1"),
    (_told(WORLD_SIZE="0"), {}, ConfigurationError, "RANK=0 in the environment, but WORLD_SIZE=0"),
    (_told(), {"backend": "magic"}, ConfigurationError, "backend='magic': torch.distributed knows no 'magic' here"),
    (_told(), {"backend": "cpu:gloo,cuda:magic"}, ConfigurationError, "knows no 'magic' here; leave backend out"),
]


@dataclass(frozen=True)
class Folder:
    """A pipeline's folder, spoilt.

    Attributes:
        spoil: changes a folder that was good.
        shows_early: whether it can be seen without loading.
    """

    name: str
    spoil: Callable[[Path], None]
    sentence: str
    shows_early: bool = True

    def __str__(self) -> str:
        return self.name


UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
WORDS_WEIGHTS = "text_encoder/model.safetensors"


def good_folder(folder: Path, **others: Any) -> Path:
    """Save a whole pipeline of tiny parts, to be called with words; `others` are parts in the place of these."""
    parts = dict(unet=tiny_unet(), vae=tiny_vae(), scheduler=ddim())
    words = dict(text_encoder=tiny_text_encoder(), tokenizer=tiny_tokenizer())
    assemble(StableDiffusionPipeline, **parts | TEXT_FREE_SD | words | others).save_pretrained(folder)
    return folder


def pickle_weights(path: Path) -> None:
    """Put an old checkpoint in the place of one of safetensors."""
    old = {"model.safetensors": "pytorch_model.bin"}.get(path.name, "diffusion_pytorch_model.bin")
    torch.save(load_file(path), path.with_name(old))
    path.unlink()


def _remove(name: str) -> Callable[[Path], None]:
    def remove(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def _cut(name: str, share: float = 0.5) -> Callable[[Path], None]:
    def cut(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: int(len(whole) * share)])

    return cut


def _configure(name: str, **changed: Any) -> Callable[[Path], None]:
    def configure(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changed), encoding="utf-8")

    return configure


def _other_weights(folder: Path) -> None:
    save_file({"weight": torch.zeros(2)}, folder / UNET_WEIGHTS)


def _missing_shard(folder: Path) -> None:
    (folder / UNET_WEIGHTS).unlink()
    index = {"metadata": {}, "weight_map": {"conv_in.weight": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (folder / f"{UNET_WEIGHTS}.index.json").write_text(json.dumps(index), encoding="utf-8")


FOLDERS: list[Folder] = [
    Folder("no index", _remove("model_index.json"), "holds no diffusers pipeline: it has no model_index.json"),
    Folder("an index cut off", _cut("model_index.json"), "model_index.json cannot be read as JSON"),
    Folder("an empty index", _write("model_index.json", b""), "model_index.json cannot be read as JSON"),
    Folder("a binary index", _write("model_index.json", b"\xff\xfe\x00"), "model_index.json cannot be read as JSON"),
    Folder("an index that is a list", _write("model_index.json", b"[]"), "must be an object with a '_class_name'"),
    Folder("an index of nothing", _write("model_index.json", b"{}"), "must be an object with a '_class_name'"),
    Folder("no denoiser's folder", _remove("unet"), "has no 'unet', which its model_index.json names"),
    Folder("no scheduler's folder", _remove("scheduler"), "has no 'scheduler', which its model_index.json names"),
    Folder("no tokenizer's folder", _remove("tokenizer"), "has no 'tokenizer', which its model_index.json names"),
    Folder("no weights", _remove(UNET_WEIGHTS), "unet has no weights: no .safetensors file"),
    Folder("weights cut off", _cut(UNET_WEIGHTS), f"{UNET_WEIGHTS} is no safetensors file, or a part of one only"),
    Folder("weights without the last bytes", _cut(UNET_WEIGHTS, 0.999), "or a part of one only"),
    Folder("weights cut off in the head", _write(UNET_WEIGHTS, b"\x10"), "is no safetensors file"),
    Folder("empty weights", _write(UNET_WEIGHTS, b""), "is no safetensors file"),
    Folder("a web page for weights", _write(UNET_WEIGHTS, b"<html>not found</html>"), "is no safetensors file"),
    Folder("a text encoder cut off", _cut(WORDS_WEIGHTS), f"{WORDS_WEIGHTS} is no safetensors file"),
    Folder(
        "pickled weights",
        lambda folder: pickle_weights(folder / UNET_WEIGHTS),
        "unet has its weights as a pickle only (diffusion_pytorch_model.bin), and reading a pickle can run code that "
        "the file brings; save it as safetensors, or give --allow-pickle",
    ),
    Folder(
        "a pickled text encoder",
        lambda folder: pickle_weights(folder / WORDS_WEIGHTS),
        "text_encoder has its weights as a pickle only (pytorch_model.bin)",
    ),
    Folder("no such class", _configure("model_index.json", _class_name="Painter"), "Painter", shows_early=False),
    Folder("no such part", _configure("model_index.json", unet=["diffusers", "Net"]), "Net", shows_early=False),
    Folder("no such library", _configure("model_index.json", unet=["nets", "Net"]), "nets", shows_early=False),
    Folder("a part that is none", _configure("model_index.json", unet="Net"), "cannot be loaded", shows_early=False),
    Folder("no configuration", _remove("unet/config.json"), "no file named config.json", shows_early=False),
    Folder("a configuration cut off", _cut("unet/config.json"), "is not a valid JSON file", shows_early=False),
    Folder(
        "weights of another shape",
        _configure("unet/config.json", cross_attention_dim=24),
        "weights of another shape than the configuration beside them says",
        shows_early=False,
    ),
    Folder(
        "a text encoder of another shape",
        _configure("text_encoder/config.json", intermediate_size=24),
        "weights of another shape than the configuration beside them says",
        shows_early=False,
    ),
    Folder("other weights", _other_weights, "its 'unet' has no weights for 'conv_in.weight'", shows_early=False),
    Folder(
        "a missing shard",
        _missing_shard,
        "names diffusion_pytorch_model-00001-of-00002.safetensors, which is not there",
    ),
    Folder(
        "a list of shards cut off", _write(f"{UNET_WEIGHTS}.index.json", b'{"weight_map": {'), "is no list of files"
    ),
    Folder("a list of shards that is none", _write(f"{UNET_WEIGHTS}.index.json", b"[]"), "is no list of files"),
]

# What commands are given that are no settings, in a folder with these files.
FILES: dict[str, bytes] = {
    "good.json": b'[["a"], ["b"]]',
    "one.txt": b"rocket\n",
    "empty.txt": b"\n \n",
    "binary.txt": b"\xff\xfe\x00",
    "weights.safetensors": b"",
}
DIRECTORIES = ("folder.html", "folder.png", "folder.md", "empty")
UNREADABLE = "locked.txt"
UNWRITABLE = "locked"  # a directory


@dataclass(frozen=True)
class Typed:
    """A command as it is typed.

    Attributes:
        by_typer: whether typer refuses it, in a box of its own.
        as_root: whether it is refused to root too.
    """

    command: str
    sentence: str
    by_typer: bool = False
    as_root: bool = True

    def __str__(self) -> str:
        return self.command


_DRAWING = ("generate rocket", "evaluate")
_ALL = (*_DRAWING, "inspect")

COMMANDS: list[Typed] = [
    Typed("paint", "No such command 'paint'", by_typer=True),
    Typed("generate", "StableDiffusionPipeline draws a prompt, and none is given"),
    Typed("generate a rocket", "unexpected extra argument", by_typer=True),
    Typed("serve rocket", "unexpected extra argument", by_typer=True),
    Typed("serve --port 70000", "Invalid value for '--port'", by_typer=True),
    Typed("serve --replicas 0", "Invalid value for '--replicas'", by_typer=True),
    *(
        Typed(f"serve {option}", sentence)
        for option, sentence in (
            ("--host 0.0.0.0", "--host: who can reach the service could use it; give --api-key-file"),
            ("--host 127.0.0.1", "--host: who can reach the service could use it; give --api-key-file"),
            ("--api-key-file nowhere.txt", "the file with the keys cannot be read"),
            ("--api-key-file good.json", "has a key of less than 16 characters"),
            ("--max-size large", "--max-size must be a width and a height in pixels, '128x128', not 'large'"),
            ("--max-seconds 0", "seconds must be a number above 0, not 0"),
            ("--steps 101", "steps must be a whole number of at most 100, not 101"),
            ("--components 3", "= 3 devices, not devices=2; use devices=3"),
            ("--devices 3 --guidance-devices 2", "devices=3 cannot be shared out among"),
            ("--tokens 2 --stride 2", "does not go together with --stride"),
            ("--tokens 2 --components 3", "= 6 devices, not devices=2; use devices=6"),
            ("--tokens 2 --components 2 --fresh", "--fresh=True makes every step that is computed one in full"),
            ("--backend magic", "--backend='magic': torch.distributed knows no 'magic' here"),
        )
    ),
    *(Typed(f"{command} --colour red", "No such option: --colour", by_typer=True) for command in (*_ALL, "models")),
    *(
        Typed(f"{command} {option}", f"Invalid value for '{re.split('[ =]', option)[0]}'", by_typer=True)
        for command in _DRAWING
        for option in (
            "--components 0",
            "--stride 0",
            "--warmup 0",
            "--guidance-devices 0",
            "--bridge 0",
            "--cooldown=-1",
            "--resync-every 0",
            "--devices 0",
            "--steps 0",
        )
    ),
    Typed("inspect --components 0", "Invalid value for '--components'", by_typer=True),
    Typed("inspect --steps 0", "Invalid value for '--steps'", by_typer=True),
    *(
        Typed(f"{command} {option}", f"Invalid value for '{option.split()[0]}'", by_typer=True)
        for command in _DRAWING
        for option in ("--components two", "--warmup 1.5", "--max-error little", "--steps nan")
    ),
    *(Typed(f"{command} --dtype int8", "'int8' is not one of", by_typer=True) for command in _ALL),
    *(Typed(f"{command} --method magic", "'magic' is not one of", by_typer=True) for command in _DRAWING),
    *(
        Typed(f"{command} {option}", sentence)
        for command in _DRAWING
        for option, sentence in (
            ("--components 1025", "--components must be a whole number of at most 1024, not 1025"),
            ("--max-error 0", "--max-error must be a number above 0, not 0"),
            ("--max-error nan", "--max-error must be a number above 0, not nan"),
            ("--target-speedup inf", "--target-speedup must be a finite number, not inf"),
            ("--timeout 0", "--timeout must be a number above 0, not 0"),
            ("--timeout 1e12", "--timeout must be a number of at most 1e+09, not 1000000000000.0"),
            ("--bridge 2 --target-speedup 3", "--bridge and --target-speedup both say how many steps are bridged"),
            ("--backend magic", "--backend='magic': torch.distributed knows no 'magic' here"),
            ("--backend=", "--backend must be a name"),
            ("--guidance nan", "--guidance must be a finite number, not nan"),
            ("--guidance=-inf", "--guidance must be a finite number, not -inf"),
            ("--split good.json --components 3", "has 2 lists of module names, but --components=3"),
        )
    ),
    Typed("inspect --split good.json --components 3", "has 2 lists of module names, but --components=3"),
    Typed("inspect --components 1025", "--components must be a whole number of at most 1024, not 1025"),
    *(Typed(f"{command} --split missing.json", "--split missing.json cannot be read") for command in _ALL),
    *(Typed(f"{command} --split empty", "--split empty cannot be read") for command in _ALL),
    *(Typed(f"{command} --split {UNREADABLE}", "cannot be read", as_root=False) for command in _ALL),
    *(
        Typed(f"{command} --model {model}", sentence)
        for command in ("generate rocket", "evaluate --prompts one.txt", "inspect", "plan --devices 2")
        for model, sentence in (
            ("./missing", "there is no folder './missing', and a hub id is written owner/name"),
            ("a/b/c", "there is no folder 'a/b/c'"),
            ("empty", "holds no diffusers pipeline: it has no model_index.json"),
            ("weights.safetensors", "is a file, but a model is a folder with a model_index.json"),
        )
    ),
    Typed(
        "generate rocket --tokens 2 --components 2 --devices 3",
        "--devices 3 does not fit --tokens 2 and --components 2: use --devices 4",
    ),
    Typed("generate rocket --seed first", "Invalid value for '--seed'", by_typer=True),
    Typed(f"generate rocket --seed {2**64}", f"--seed {2**64}: a seed is from"),
    Typed("generate rocket --out picture.nonsense", ".nonsense is no format to write; use .png"),
    Typed("generate rocket --out picture", "no ending is no format to write"),
    Typed("generate rocket --out picture.psd", ".psd is no format to write"),  # Pillow can only read it
    Typed("generate rocket --out nowhere/out.png", "--out nowhere/out.png: the folder nowhere does not exist"),
    Typed("generate rocket --out folder.png", "--out folder.png cannot be written"),
    Typed("generate rocket --out one.txt/out.png", "the folder one.txt does not exist"),
    Typed(f"generate rocket --out {UNWRITABLE}/out.png", "cannot be written", as_root=False),
    Typed("generate rocket --devices 2 --components 3", "use --devices 3, or --components 2"),
    Typed(
        "generate rocket --devices 2 --components 2 --stride 2",
        "use --devices 3, or --components 1, or --stride 1",
    ),
    Typed("generate rocket --devices 2 --stride 3", "use --devices 4 or more"),
    Typed("generate rocket --devices 3 --guidance-devices 2", "use --devices 4"),
    Typed("generate rocket --devices 3 --split good.json", "use --devices 2"),
    Typed(
        "generate rocket --devices 6 --guidance-devices 2 --components 2",
        "2 guidance-devices * (components + stride - 1) = 4 devices: use --devices 4, or --components 3",
    ),
    Typed("plan", "Missing option '--devices'", by_typer=True),
    *(
        Typed(f"plan --devices 2 {option}", f"Invalid value for '{option.split()[0]}'", by_typer=True)
        for option in ("--steps 0", "--warmup 0", "--batch 0", "--height 0", "--width -8", "--frames 0", "--devices 65")
    ),
    *(
        Typed(f"plan --devices 2 {option}", sentence)
        for option, sentence in (
            ("--memory 24XB", "--memory must be an amount above 0 with its unit, 24GB or 24GiB say, not '24XB'"),
            ("--memory 0GB", "--memory must be an amount above 0"),
            ("--link pcie9", "--link must be nvlink, pcie4, pcie3, ethernet or a bandwidth such as 12GB/s (bytes"),
            ("--link 12GB", "--link must be nvlink"),
            ("--tflops 0", "--tflops must be a number above 0, not 0"),
            ("--tflops nan", "--tflops must be a number above 0, not nan"),
            ("--device abacus", "--device must be gpu or cpu, not 'abacus'"),
            ("--measure --tflops 3", "--tflops says what is modelled, and --measure times this machine"),
            ("--measure --device gpu", "--device says what is modelled, and --measure times this machine"),
            ("--measure --model empty", "--model: the folder 'empty' holds no diffusers pipeline"),
            ("--timeline nowhere/plan.svg", "--timeline nowhere/plan.svg: the folder nowhere does not exist"),
            ("--timeline folder.png", "--timeline folder.png cannot be written"),
        )
    ),
    Typed("evaluate --prompts missing.txt", "--prompts missing.txt cannot be read"),
    Typed("evaluate --prompts empty.txt", "--prompts empty.txt holds no prompt"),
    Typed("evaluate --prompts binary.txt", "--prompts binary.txt cannot be read"),
    Typed("evaluate --prompts empty", "--prompts empty cannot be read"),
    Typed(f"evaluate --prompts {UNREADABLE}", "cannot be read", as_root=False),
    Typed("evaluate --model some/model", "--prompts is needed for some/model"),
    Typed("evaluate --seeds 0,x", "write whole numbers with commas between"),
    Typed("evaluate --seeds=", "write whole numbers with commas between"),
    Typed("evaluate --seeds=-1", "write whole numbers with commas between"),
    Typed(f"evaluate --seeds 0,{2**64}", f"--seeds {2**64}: a seed is from"),
    Typed("evaluate --metrics beauty", "there is no metric 'beauty'; choose among lpips, clip, fid"),
    Typed("evaluate --metrics fid --prompts one.txt", "fid needs at least two pictures"),
    Typed("evaluate --out report.pdf", "must end in .html"),
    Typed("evaluate --out nowhere/report.html", "the folder nowhere does not exist"),
    Typed("evaluate --out folder.html", "--out folder.html cannot be written"),
    Typed(f"evaluate --out {UNWRITABLE}/report.html", "cannot be written", as_root=False),
    Typed("evaluate --compare-with parts=3", "'parts=3' is no NAME=VALUE"),
    Typed("evaluate --compare-with components=2", "is among the settings already"),
    Typed("evaluate --compare-with components=1025", "components must be a whole number of at most 1024, not 1025"),
    Typed("evaluate --compare-with max-error=inf", "max-error must be a finite number, not inf"),
    Typed("evaluate --split good.json --compare-with components=3", "has 2 lists of module names, but components=3"),
    Typed("evaluate --devices 2 --compare-with components=3", "takes 3 devices, but --devices is 2"),
    Typed("evaluate --devices 2 --stride 3", "use --devices 4 or more"),
    Typed("evaluate --devices 2 --executor local", "leave out --devices 2"),
    Typed("evaluate --executor threads", "'threads' is not one of", by_typer=True),
    Typed("models Painter", "Painter is no denoiser class that diffusers"),
    Typed("models --markdown nowhere/models.md", "--markdown nowhere/models.md: the folder nowhere does not exist"),
    Typed("models --markdown folder.md", "--markdown folder.md cannot be written"),
]
