"""How the command line speaks: results on stdout, all else on stderr, errors as one line and an exit code."""

import functools
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

import typer
from rich.console import Console

from features.errors import (
    ArtifactError,
    ConfigError,
    LeakageError,
    SchemaError,
    TwotowerError,
)
from pipelines.workspace import StoreInUseError

P = ParamSpec("P")

EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "a stage failed, or a defect",
    2: "usage or configuration",
    3: "input data",
    4: "a missing or damaged artifact or bundle",
    5: "the bundle was not promoted",
    6: "another run uses the store",
    130: "interrupted",
}
_REFUSED = 5


class Output:
    """Where the running command prints; one for the process, set by its options."""

    def __init__(self) -> None:
        self.json = False
        self.debug = False
        self.finished = False

    @property
    def console(self) -> Console:
        """The console for results: stdout, or stderr when stdout is kept for JSON."""
        return Console(stderr=self.json)

    def finish(self, document: Mapping[str, Any]) -> None:
        """Print the JSON object, if it was asked for."""
        self.finished = True
        if self.json:
            sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
            sys.stdout.flush()

    def error(self, text: str, code: int) -> None:
        """Print an error, each of its lines marked, and the JSON object where there was none yet."""
        for line in text.splitlines():
            sys.stderr.write(f"twotower: {line}\n")
        if not self.finished:
            self.finish({"error": {"exit_code": code, "message": text}})


OUTPUT = Output()


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun in the number that fits: `1 bundle`, `2,000 bundles`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


class RefusedError(TwotowerError):
    """What was asked for was done, but the bundle was not promoted."""


def exit_code(error: BaseException) -> int:
    """Return the exit code of an error."""
    codes: list[tuple[type[BaseException] | tuple[type[BaseException], ...], int]] = [
        (ConfigError, 2),
        ((SchemaError, LeakageError), 3),
        (ArtifactError, 4),
        (RefusedError, _REFUSED),
        (StoreInUseError, 6),
        (KeyboardInterrupt, 130),
    ]
    if isinstance(error, TwotowerError) and isinstance(error, ValueError):  # an argument, such as a query
        return 2
    return next((code for kinds, code in codes if isinstance(error, kinds)), 1)


def reported(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a command raises into a line on stderr and an exit code; `--debug` adds the traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        OUTPUT.json = bool(kwargs.get("json"))
        OUTPUT.debug = bool(kwargs.get("debug"))
        OUTPUT.finished = False
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except (Exception, KeyboardInterrupt) as error:
            if OUTPUT.debug:
                traceback.print_exc()
            OUTPUT.error(_message(error), exit_code(error))
            _release(error)
            raise typer.Exit(exit_code(error)) from None

    return run


def _release(error: BaseException | None) -> None:
    """Drop what the frames of an error hold; DuckDB complains of connections that outlive the interpreter."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _message(error: BaseException) -> str:
    if isinstance(error, TwotowerError):
        return str(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; the same command goes on from here"
    first = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {first} (--debug shows where)"
