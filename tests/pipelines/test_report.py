import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from pipelines.report import (
    comparison_grid,
    html_page,
    print_index,
    print_results,
    print_table,
    results_grid,
    results_markdown,
    slices_grid,
    value_with_interval,
)
from serving.candidates import LeftOut
from serving.curve import Curve, Setting


def row(system, slice_, metric, value, n=10):
    return {
        "system": system,
        "slice": slice_,
        "metric": metric,
        "value": value,
        "low": value - 0.1,
        "high": value + 0.1,
        "n": n,
    }


ROWS = [
    row("towers", "all", "nDCG@10", 0.5),
    row("towers", "all", "R@100", 0.8),
    row("bm25", "all", "nDCG@10", 0.4),
    row("towers", "tail", "nDCG@10", 0.3, n=4),
    row("bm25", "tail", "nDCG@10", 0.2, n=4),
]


def test_a_value_carries_its_interval():
    assert value_with_interval(ROWS[0]) == "0.500 [0.400, 0.600]"
    assert value_with_interval(None) == "–"


def test_systems_are_lines_and_metrics_columns_and_what_was_not_measured_is_a_dash():
    header, lines = results_grid(ROWS, "all")
    assert header == ["system", "nDCG@10", "R@100"]
    assert lines == [
        ["towers", "0.500 [0.400, 0.600]", "0.800 [0.700, 0.900]"],
        ["bm25", "0.400 [0.300, 0.500]", "–"],
    ]


def test_slices_show_their_number_of_queries():
    header, lines = slices_grid(ROWS, "nDCG@10")
    assert header == ["slice", "queries", "towers", "bm25"]
    assert lines[0][:2] == ["tail", "4"]


def test_markdown_is_a_table():
    assert results_markdown(ROWS).splitlines()[:2] == [
        "| system | nDCG@10 | R@100 |",
        "| --- | ---: | ---: |",
    ]


@pytest.mark.parametrize("terminal", [True, False])
def test_results_are_printed_on_a_terminal_and_elsewhere(terminal):
    text = io.StringIO()
    print_results(Console(file=text, force_terminal=terminal, width=120), ROWS, "nDCG@10")
    assert "0.500 [0.400, 0.600]" in text.getvalue()
    assert "nDCG@10 by slice" in text.getvalue()
    assert ("\x1b[" in text.getvalue()) is terminal


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_no_number_or_name_is_cut_off_on_a_narrow_terminal(width):
    metrics = ["nDCG@10", "R@10", "R@100", "RR@10", "Success@10", "ListAUC"]
    rows = [row(name, "all", metric, 0.5) for name in ("towers", "popularity") for metric in metrics]
    text = io.StringIO()
    print_results(Console(file=text, force_terminal=True, width=width, color_system=None), rows)
    lines = text.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= width
    assert text.getvalue().count("0.500 [0.400, 0.600]") == 12
    assert "…" not in text.getvalue()
    tables = sum(line.split()[:1] == ["system"] for line in lines)
    assert sum(line.split()[:1] == ["popularity"] for line in lines) == tables


def test_texts_stand_to_the_left_and_are_shortened_to_fit():
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=60, color_system=None)
    print_table(console, "hits", ["rank", "score", "title"], [["1", "0.5", "long " * 30]], left=["title"])
    (line,) = (line for line in text.getvalue().splitlines() if "long" in line)
    assert line.split()[:3] == ["1", "0.5", "long"]
    assert line.rstrip().endswith("…")
    plain = io.StringIO()
    print_table(Console(file=plain), "hits", ["rank", "title"], [["1", "a"], ["2", "bcd"]], left=["title"])
    assert plain.getvalue().splitlines() == ["hits", "rank  title", "1     a", "2     bcd"]


def test_the_html_page_escapes_and_loads_nothing():
    header, lines = comparison_grid(
        [
            {
                "metric": "R@10",
                "a": 0.1,
                "b": 0.2,
                "difference": 0.1,
                "low": 0.0,
                "high": 0.2,
                "p": None,
                "n": 7,
            }
        ],
        "A",
        "B",
    )
    page = html_page("<b>", ["x & y"], [("A and B", header, lines)])
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(page)
    assert "&lt;b&gt;" in page
    assert "x &amp; y" in page
    assert "+0.1000" in page
    assert not [tag for tag, attributes in tags if {"src", "href"} & attributes.keys()]


def test_an_index_is_printed_with_what_it_was_chosen_from_and_what_was_left_out():
    def setting(factory, recall, speed):
        return Setting(factory, {"nprobe": 3}, recall, speed, 50.0, 1.5, 0.5)

    settings = [setting("IVF8,Flat", 0.99, 1_000.0), setting("IVF8,SQ8", 0.97, 3_000.0)]
    curve = Curve(0.95, 10, 200, settings, 1, [LeftOut("HNSW32", "about 9 MB, over index.memory")])
    content = {"index": {"factory": "IVF8,SQ8", "note": "IVF8,SQ8 is the cheapest"}}
    output = io.StringIO()
    console = Console(file=output, width=200)
    print_index(console, {**content, "measured": {"index_curve": curve.as_json()}})
    printed = output.getvalue()
    assert printed.startswith("IVF8,SQ8 is the cheapest\n")
    assert "→" in next(line for line in printed.splitlines() if "0.9700" in line)
    assert "3,000" in printed
    assert "left out: HNSW32: about 9 MB, over index.memory" in printed
    assert Curve.from_json(curve.as_json()) == curve


def test_an_index_that_was_not_tuned_is_printed_in_one_line():
    output = io.StringIO()
    print_index(Console(file=output), {"index": {"factory": "Flat"}})
    assert output.getvalue() == "Flat\n"
