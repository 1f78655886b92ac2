"""Evaluations as tables: on a terminal, as plain text, as Markdown, as one HTML file."""

import html
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table

from serving.curve import Curve

Row = Mapping[str, Any]
"""One entry of an evaluation list: system, slice, metric, value, low, high, n."""

_GAP = 3
"""Characters between two columns of a table on a terminal."""

_SHORTENED = 20
"""A text of a table is shortened to no less than so many characters to fit a terminal."""

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.3rem .8rem;border-bottom:1px solid #ccc;
text-align:right;font-variant-numeric:tabular-nums}th:first-child,td:first-child{text-align:left}
small{color:#666}@media(prefers-color-scheme:dark){body{background:#111;color:#ddd}}"""


def value_with_interval(row: Row | None) -> str:
    """Return `0.412 [0.390, 0.433]`, or a dash where nothing was measured."""
    if row is None or row.get("value") is None:
        return "–"
    text = f"{row['value']:.3f}"
    if row.get("low") is not None and row.get("high") is not None:
        text += f" [{row['low']:.3f}, {row['high']:.3f}]"
    return text


def results_grid(rows: Sequence[Row], slice_name: str) -> tuple[list[str], list[list[str]]]:
    """Arrange one slice as systems × metrics.

    Returns:
        The header, and a line of cells for each system, both in the order of the evaluation.
    """
    chosen = [row for row in rows if row["slice"] == slice_name]
    metrics = list(dict.fromkeys(str(row["metric"]) for row in chosen))
    systems = list(dict.fromkeys(str(row["system"]) for row in chosen))
    cells = {(row["system"], row["metric"]): row for row in chosen}
    lines = [
        [name, *(value_with_interval(cells.get((name, metric))) for metric in metrics)] for name in systems
    ]
    return ["system", *metrics], lines


def slices_grid(rows: Sequence[Row], metric: str) -> tuple[list[str], list[list[str]]]:
    """Arrange one metric as slices × systems, with the number of queries of each slice."""
    chosen = [row for row in rows if row["metric"] == metric and row["slice"] != "all"]
    slices = list(dict.fromkeys(str(row["slice"]) for row in chosen))
    systems = list(dict.fromkeys(str(row["system"]) for row in chosen))
    cells = {(row["slice"], row["system"]): row for row in chosen}
    counts = {str(row["slice"]): str(row["n"]) for row in chosen}
    lines = [
        [name, counts[name], *(value_with_interval(cells.get((name, system))) for system in systems)]
        for name in slices
    ]
    return ["slice", "queries", *systems], lines


def print_results(console: Console, rows: Sequence[Row], metric: str | None = None) -> None:
    """Print systems × metrics, then the slices of one metric (by default the first)."""
    if not rows:
        console.print("no evaluation", highlight=False)
        return
    queries = max((int(row["n"]) for row in rows if row["slice"] == "all"), default=0)
    print_table(console, f"all test queries ({queries:,}), 95% intervals", *results_grid(rows, "all"))
    chosen = metric if any(row["metric"] == metric for row in rows) else str(rows[0]["metric"])
    header, lines = slices_grid(rows, str(chosen))
    if lines:
        print_table(console, f"{chosen} by slice", header, lines)


def print_table(
    console: Console,
    title: str,
    header: Sequence[str],
    lines: Iterable[Sequence[str]],
    *,
    left: Collection[str] = (),
) -> None:
    """Print a table: ruled and not wider than a terminal, aligned plain columns elsewhere.

    The first column and those named in `left` are aligned to the left, the others to the right.
    """
    left = {header[0], *left}
    rows = [list(line) for line in lines]
    if not console.is_terminal:
        console.out(title, highlight=False)
        console.out(plain(header, rows, left), highlight=False)
        return
    for columns in _that_fit(_widths(header, rows), console.width, header, left):
        table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
        )
        for column, width in columns.items():
            justify: JustifyMethod = "left" if header[column] in left else "right"
            table.add_column(header[column], justify=justify, no_wrap=True, width=width)
        for row in rows:
            table.add_row(*(row[column] for column in columns), style="bold" if row[0] == "towers" else "")
        console.print(table)
        console.line()
        title = ""


def _widths(header: Sequence[str], lines: Sequence[Sequence[str]]) -> list[int]:
    return [max(cell_len(line[column]) for line in [header, *lines]) for column in range(len(header))]


def _that_fit(
    widths: Sequence[int], room: int, header: Sequence[str], left: Collection[str]
) -> list[dict[int, int]]:
    """Divide columns among as many tables as the terminal's width needs; each begins with the first column.

    Returns:
        For each table, the widths of its columns, by their places in the header.
    """
    tables: list[dict[int, int]] = [{0: widths[0]}]
    for column in range(1, len(widths)):
        width = min(widths[column], _SHORTENED) if header[column] in left else widths[column]
        if len(tables[-1]) > 1 and _total(tables[-1]) + _GAP + width > room:
            tables.append({0: widths[0]})
        tables[-1][column] = width
    for table in tables:
        for column in reversed(table):  # what is over goes to the texts, the last one first
            table[column] = min(widths[column], table[column] + max(0, room - _total(table)))
    return tables


def _total(table: Mapping[int, int]) -> int:
    return sum(table.values()) + _GAP * (len(table) - 1)


def plain(header: Sequence[str], lines: Iterable[Sequence[str]], left: Collection[str]) -> str:
    """Return columns aligned with spaces, those named in `left` to the left, the others to the right."""
    table = [list(header), *(list(line) for line in lines)]
    widths = _widths(header, table[1:])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if name in left else cell.rjust(width)
            for name, cell, width in zip(header, line, widths, strict=True)
        ).rstrip()
        for line in table
    )


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table, first column to the left, the others to the right."""
    rule = ["---", *("---:" for _ in header[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [list(header), rule, *lines])


def results_markdown(rows: Sequence[Row], slice_name: str = "all") -> str:
    """Return one slice of an evaluation as a Markdown table of systems × metrics."""
    return markdown(*results_grid(rows, slice_name))


def comparison_grid(rows: Sequence[Row], a: str, b: str) -> tuple[list[str], list[list[str]]]:
    """Arrange a paired comparison (see `pipelines.comparison`) as metrics × values."""
    header = ["metric", a, b, f"{b} − {a}", "95% interval", "p", "queries"]
    lines = [
        [
            str(row["metric"]),
            f"{row['a']:.4f}",
            f"{row['b']:.4f}",
            f"{row['difference']:+.4f}",
            f"[{row['low']:+.4f}, {row['high']:+.4f}]",
            "–" if row["p"] is None else f"{row['p']:.3f}",
            f"{row['n']:,}",
        ]
        for row in rows
    ]
    return header, lines


def html_page(
    title: str, notes: Sequence[str], tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]]
) -> str:
    """Return one self-contained page with a table for each (caption, header, lines)."""
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p><small>{html.escape(note)}</small></p>" for note in notes),
    ]
    for caption, header, lines in tables:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in lines
        )
        parts.append(f"<h2>{html.escape(caption)}</h2><table><tr>{head}</tr>{body}</table>")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def print_index(console: Console, content: Mapping[str, Any]) -> None:
    """Print why a bundle has the index that it has, from its manifest's content."""
    console.out(content["index"].get("note", content["index"]["factory"]), highlight=False)
    if "measured" in content:
        curve = Curve.from_json(content["measured"]["index_curve"])
        print_table(console, "index, one thread, batches of 32", *curve.table(), left=("index", "search"))
        for left in curve.left_out:
            console.out(f"left out: {left.factory}: {left.reason}", highlight=False)
