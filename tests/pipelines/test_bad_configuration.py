"""Whatever is wrong with a configuration or an option: the command line says it before any work."""

import re
import sys
from itertools import pairwise

import pytest

CONFIGURATIONS = {
    "unknown key": (
        "dimension: 8",
        "dimensoin: 8",
        r':12: towers\.dimensoin: unknown key; did you mean "dim',
    ),
    "unknown key in a list": (
        "steps: 2",
        "steps: 2, lr: 1",
        r":18: train\.stages\.0\.lr: unknown key; allowed",
    ),
    "a tab": ("  dimension", "\tdimension", r":12: not valid YAML: .*; indent with spaces, not with tabs"),
    "a key twice": ("name: bad", "name: bad\nname: worse", r":2: key 'name' was already given on line 1"),
    "no catalogue": ("  documents:", "  document:", r"a log needs a catalogue; say where it is"),
    "an object of Python": (
        "name: bad",
        "name: !!python/name:os.system",
        r":1: not valid YAML: could not determine a constructor for the tag",
    ),
    "a word for a number": ("batch_size: 8", "batch_size: many", r"batch_size: input should be a valid int"),
    "a metric that is none": (
        "train:",
        "evaluate: {metrics: [nDGC@10]}\ntrain:",
        "'nDGC@10' is not a metric",
    ),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_mistake_in_the_configuration_is_one_line_with_its_place(shop, name, twotower_says):
    old, new, message = CONFIGURATIONS[name]
    shop.config.write_text(shop.config.read_text().replace(old, new, 1))
    code, line = twotower_says("run", shop.config)
    assert code == 2
    assert re.search(message, line)
    assert line.startswith(f"twotower: {shop.config}")
    assert "\n" not in line
    assert not shop.store.exists()


def test_aliases_that_would_write_billions_of_values_are_refused_at_once(shop, twotower_says):
    names = "abcdefgh"
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]" for before, name in pairwise(names)]
    shop.config.write_text("\n".join(lines))
    code, line = twotower_says("run", shop.config)
    assert code == 2
    assert "its aliases written out; a configuration is smaller: remove the aliases" in line


def test_nesting_without_end_is_refused(shop, twotower_says):
    shop.config.write_text("name: " + "[" * 5 * sys.getrecursionlimit())
    code, line = twotower_says("run", shop.config)
    assert (code, line) == (2, f"twotower: {shop.config}: nested too deeply for a configuration")


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        (None, 3, "qrels.csv does not exist or names no file; correct the path"),
        (
            "query_text,doc_id,grade\nred,d0,1\n",
            3,
            "qrels.csv has no column 'relevance'; map relevance to one",
        ),
        ("query_text,doc_id,relevance\nred,d0,good\n", 3, "judgement 1 has the grade 'good', no number"),
        ("query_text,doc_id,relevance\n", 3, "qrels.csv is empty: no judgements"),
    ],
)
def test_judged_queries_that_cannot_be_read_are_told_before_anything_is_done(
    shop, text, code, message, twotower_says
):
    path = shop.folder / "qrels.csv"
    if text is not None:
        path.write_text(text)
    got, line = twotower_says("run", shop.config, "--set", f"qrels.path={path}")
    assert got == code
    assert message in line
    assert "\n" not in line
    assert shop.left() == []


def test_simulating_onto_what_a_user_has_there_is_refused_and_deletes_nothing(tmp_path, twotower_says):
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    file = tmp_path / "notes.txt"
    file.write_text("more")
    for target in (folder, file):
        code, line = twotower_says("simulate", target, "--sessions", "10")
        assert code == 2
        assert "which would be deleted; name a folder that does not exist" in line
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert file.read_text() == "more"


def test_a_simulation_replaces_an_earlier_one_but_not_what_was_put_beside_it(tmp_path, twotower_says):
    shop = tmp_path / "shop"
    assert twotower_says("simulate", shop, "--sessions", "10")[0] == 0
    assert twotower_says("simulate", shop, "--sessions", "12")[0] == 0
    (shop / "notes.txt").write_text("mine")
    code, line = twotower_says("simulate", shop, "--sessions", "10")
    assert code == 2
    assert "notes.txt" in line
    assert (shop / "notes.txt").read_text() == "mine"
