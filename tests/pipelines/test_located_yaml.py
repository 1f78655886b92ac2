import pytest

from features.errors import ConfigError
from pipelines.located_yaml import nearest, override, parse_located_yaml, read_located_yaml

TEXT = """\
name: shop

train:
  stages:
    - batch_size: 8
      loss: {kind: hinge}
    - batch_size: 16
  learning_rate: 1e-3
"""


def test_every_value_knows_its_line():
    located = parse_located_yaml(TEXT, "x.yaml")
    assert located.place(("name",)) == "x.yaml:1"
    assert located.place(("train", "stages", 0, "loss", "kind")) == "x.yaml:6"
    assert located.place(("train", "stages", 1)) == "x.yaml:7"
    assert located.place(("train", "stages", 1, "absent")) == "x.yaml:7"


def test_exponents_without_a_point_are_numbers():
    assert parse_located_yaml(TEXT, "x.yaml").data["train"]["learning_rate"] == 0.001


def test_text_that_begins_like_a_number_stays_text():
    assert parse_located_yaml("a: 1e3x\nb: 3 a.m.", "x").data == {"a": "1e3x", "b": "3 a.m."}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: key 'a' was already given on line 1"),
        ("a: [1, 2\nb: 3\n", "x.yaml:2: not valid YAML"),
        ("a: &x\n  b: *x\n", "x.yaml:2: an alias contains itself"),
        ("? [1, 2]\n: 3\n", "x.yaml:1: a key must be a plain name"),
        ("a: !!python/object:os.system x\n", "x.yaml:1: not valid YAML"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(text, message):
    with pytest.raises(ConfigError) as caught:
        parse_located_yaml(text, "x.yaml")
    assert str(caught.value).startswith(message)


def test_merge_keys_work_and_the_own_value_wins():
    located = parse_located_yaml("base: &b {x: 1, y: 2}\nown:\n  <<: *b\n  y: 3\n", "x.yaml")
    assert located.data["own"] == {"x": 1, "y": 3}
    assert located.place(("own", "y")) == "x.yaml:4"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml does not exist"):
        read_located_yaml(tmp_path / "absent.yaml")


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match=r"x\.yaml is not UTF-8 text"):
        read_located_yaml(tmp_path / "x.yaml")


def test_overrides_change_values_and_their_place():
    located = parse_located_yaml(TEXT, "x.yaml")
    override(located, "train.stages.1.batch_size=64")
    override(located, "train.device=cpu")
    override(located, "new.section={a: 1}")
    assert located.data["train"]["stages"][1]["batch_size"] == 64
    assert located.data["new"] == {"section": {"a": 1}}
    assert located.place(("train", "stages", 1, "batch_size")) == "--set train.stages.1.batch_size=64"
    assert located.place(("train", "stages", 0, "batch_size")) == "x.yaml:5"


def test_an_override_replaces_a_whole_section_and_its_places():
    located = parse_located_yaml(TEXT, "x.yaml")
    override(located, "train=null")
    assert located.data["train"] is None
    assert located.place(("train", "stages", 0)) == "--set train=null"


def test_the_number_after_the_last_appends_an_element():
    located = parse_located_yaml(TEXT, "x.yaml")
    override(located, "train.stages.2={name: more}")
    assert located.data["train"]["stages"][2] == {"name": "more"}
    assert len(located.data["train"]["stages"]) == 3
    assert located.place(("train", "stages", 2)).startswith("--set")


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train", "expected key=value"),
        ("=3", "expected key=value"),
        ("train..x=3", "expected key=value"),
        ("train.stages.7.batch_size=1", "'7' is not an index of a list with 2 elements"),
        ("train.stages.2.batch_size=1", "'2' is not an index of a list with 2 elements"),
        ("train.stages.3={}", "'3' is not an index of a list with 2 elements"),
        ("name.first=x", "'first' is below a single value ('shop')"),
        ("name=[1", "not valid YAML"),
    ],
)
def test_a_bad_override_says_what_is_wrong(assignment, message):
    with pytest.raises(ConfigError) as caught:
        override(parse_located_yaml(TEXT, "x.yaml"), assignment)
    assert str(caught.value).startswith(f"--set {assignment}") or message == "not valid YAML"
    assert message in str(caught.value)


def test_a_near_word_is_suggested():
    assert nearest("stagess", ["name", "stages"]) == 'did you mean "stages"? allowed: name, stages'
    assert nearest("zzz", ["name", "stages"]) == "allowed: name, stages"
