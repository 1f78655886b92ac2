"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML configuration.", show_default=False)]
StorePath = Annotated[
    Path, typer.Argument(metavar="STORE", help="Store folder of a run.", show_default=False)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=VALUE", help="Change one value of the configuration; repeatable."),
]
Refresh = Annotated[
    list[str] | None,
    typer.Option(
        "--refresh", metavar="STAGE", help="Do a stage again although its result is there; repeatable."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object as the last line of stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
