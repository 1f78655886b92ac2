"""The command line, `twotower`. Heavy libraries are imported by the command that needs them."""

import sys

import typer
from typer.core import TyperGroup

from pipelines.output import EXIT_CODES, OUTPUT
from pipelines.run_cli import app as run_commands
from pipelines.serve_cli import app as serve_commands
from pipelines.setup_cli import app as setup_commands
from pipelines.store_cli import app as store_commands
from pipelines.update_cli import app as update_commands

_CODES = " · ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items())

app = typer.Typer(
    name="twotower",
    help="From click logs to a served two-tower retrieval index.",
    epilog=f"Exit codes: {_CODES}",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for commands in (run_commands, serve_commands, store_commands, update_commands, setup_commands):
    app.add_typer(commands)


def _help_on(error: Exception) -> str:
    """Return which help says more: that of the command in which the mistake is, or the list of commands."""
    context = getattr(error, "ctx", None)
    lists = context is None or isinstance(context.command, TyperGroup)
    names: list[str] = []
    while context is not None and context.parent is not None:
        names.insert(0, context.info_name)
        context = context.parent
    command = " ".join(["twotower", *names, "--help"])
    return f"`{command}` lists {'the commands' if lists else 'what it takes'}"


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit with a documented code."""
    try:
        code = app(args=arguments, standalone_mode=False)
    except typer.Abort:
        code = 130
    except Exception as error:
        describe = getattr(error, "format_message", None)  # only usage errors have it
        if describe is None:
            raise
        if message := describe():  # none where the help was shown already
            OUTPUT.json = "--json" in (sys.argv[1:] if arguments is None else arguments)
            OUTPUT.error(f"{message} ({_help_on(error)})", 2)
        code = 2
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
