"""The command `asyncdiff models`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

from asyncdiff.commands.checks import check_out, write_file
from asyncdiff.commands.terminal import exit_codes, refuse, stderr, stdout
from asyncdiff.errors import AsyncDiffError


def models(
    names: Annotated[
        list[str] | None,
        typer.Argument(help="Classes of diffusers, for instance FluxTransformer2DModel. [default: all]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plain JSON instead of a table.")] = False,
    markdown: Annotated[
        Path | None, typer.Option(readable=False, help="Also write the table to this Markdown file.")
    ] = None,
) -> None:
    """Check which denoiser classes of the installed diffusers can be divided.

    Builds each class small, with random weights, and checks it: units and live edges, balance for two, three
    and four components, the warm-up against the plain model, the rounds against the paper's recurrence. Nothing
    is downloaded. All classes take some minutes.

    Examples:

    - `asyncdiff models FluxTransformer2DModel UNet2DConditionModel`

    - `asyncdiff models --json > models.json`

    Exit codes: 0 fine (whether or not all classes work), 2 no such class, 130 interrupted (Ctrl-C).
    """
    if markdown is not None:
        check_out("--markdown", markdown)
    from asyncdiff.zoo import matrix

    with exit_codes():
        try:
            found = matrix.subjects(names or ())
        except AsyncDiffError as error:
            refuse(str(error))
        findings = [matrix.examine(subject) for subject in track(found, "checking", console=stderr)]
    if markdown is not None:
        write_file("--markdown", markdown, matrix.as_page(findings))
    if as_json:
        print(json.dumps([matrix.as_object(finding) for finding in findings], indent=2))
        return
    table = Table(*(Column(name, overflow="fold") for name in matrix.COLUMNS))
    for finding in findings:
        table.add_row(*map(escape, matrix.as_row(finding)))
    stdout.print(table)
