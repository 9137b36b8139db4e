"""`make test-oldest`: the tests with the oldest versions that pyproject.toml allows, in an environment of their own."""

import glob
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.version import Version

VERSIONS = "constraints-oldest.txt"
PROJECT = nox.project.load_toml("pyproject.toml")["project"]
OLDEST = PROJECT["requires-python"].removeprefix(">=")

# What holds for one version of diffusers only: docs/models.md and the pages beside it, and the measurements of
# benchmarks/, are made with the newest one.
LEFT_OUT = (
    "--ignore=tests/benchmarks",
    "--ignore=tests/docs",
    "--deselect=tests/zoo/test_zoo.py::test_quick_part",
    "--deselect=tests/zoo/test_zoo.py::test_the_page_lists_every_class",
)

# Typer 0.16 lets a command begin without an option that it must have; it is refused in our own words then.
LEFT_OUT += ("--deselect=tests/commands/test_bad_input.py::test_commands[plan]",)

# What the oldest versions cannot do, without asyncdiff either: torch 2.6 reaches its limit of compilations in repeated
# blocks; on a machine without a GPU, its CUDA build fails where diffusers offloads blocks and leaves.
LEFT_OUT += (
    "--deselect=tests/pipelines/test_execution.py::test_repeated_blocks_are_compiled_once",
    "--deselect=tests/pipelines/test_execution.py::test_compiled_between_two_calls[unet]",
    "-k=not offload_blocks and not offload_leaves and not apply_group_offloading",
)

ADVICE = f"""no Python {OLDEST} found: it is the oldest that the package supports. Install it, for example with
    pyenv install {OLDEST}
    uv python install {OLDEST}
    apt-get install python{OLDEST} python{OLDEST}-venv
or say where it is:
    OLDEST_PYTHON=/path/to/python{OLDEST} make test-oldest"""


def candidates() -> Iterator[str]:
    """Where the oldest Python may be: as told, on the path, among pyenv's and uv's."""
    yield os.environ.get("OLDEST_PYTHON", f"python{OLDEST}")
    home = Path.home()
    roots = (os.environ.get("PYENV_ROOT", home / ".pyenv") / Path("versions"), home / ".local/share/uv/python")
    for root, name in zip(roots, (f"{OLDEST}.*", f"cpython-{OLDEST}.*"), strict=True):
        yield from sorted(glob.glob(f"{root}/{name}/bin/python"))


def is_oldest(python: str) -> bool:
    """Whether it runs, which pyenv's stand-ins do not always, and is of the version looked for."""
    asked = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == OLDEST
    except (OSError, subprocess.CalledProcessError):
        return False


PYTHON = next(filter(is_oldest, candidates()), None)


@nox.session(python=PYTHON or False)
def oldest(session: nox.Session) -> None:
    """The tests and a picture with the oldest versions."""
    if PYTHON is None:
        session.error(ADVICE)
    check_bounds(session)
    session.install("--constraint", VERSIONS, "--editable", ".[dev]")
    session.run("python", "-m", "pytest", "-m", "not whole", *LEFT_OUT, *session.posargs)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "rocket.png")
        session.run("asyncdiff", "generate", "rocket", "--components=2", "--steps=8", f"--out={picture}")
        if not picture.exists():
            session.error("no picture was drawn")


def check_bounds(session: nox.Session) -> None:
    """What is tested is what pyproject.toml promises: the lower bound of everything that the package depends on."""
    lines = Path(VERSIONS).read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line.partition("#")[0]) for line in lines if line.partition("#")[0].strip()]
    tested = {pin.name: versions(pin, "==") for pin in pins}
    for requirement in map(Requirement, PROJECT["dependencies"]):
        if tested.get(requirement.name) != versions(requirement, ">="):
            session.error(f"{requirement} in pyproject.toml, but not the same version in {VERSIONS}")


def versions(requirement: Requirement, operator: str) -> list[Version]:
    """The versions that a requirement names with this operator."""
    return [Version(each.version) for each in requirement.specifier if each.operator == operator]
