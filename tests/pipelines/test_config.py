import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from features.errors import ConfigError
from pipelines.config import dump_config, load_config, load_serve_config, portable

ROOT = Path(__file__).parents[2]


def mistakes(path, old="", new="", overrides=()):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old else text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    return str(caught.value).splitlines()


def line_of(path, text):
    return 1 + next(number for number, line in enumerate(path.read_text().splitlines()) if text in line)


def test_a_valid_configuration_loads_with_absolute_paths(shop_config, shop_data, tmp_path):
    config = load_config(shop_config)
    assert config.store == tmp_path / "store"
    assert [path.is_absolute() for path in config.source.path] == [True]
    assert config.train.stages[1].batch_size == 128


def test_the_settings_of_a_server_may_stand_alone(shop_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "serve.yaml").write_text("serve:\n  port: 9000\n  keys: {file: keys}\n")
    alone = load_serve_config(tmp_path / "serve.yaml")
    assert (alone.port, alone.keys.file) == (9000, tmp_path / "keys")
    shop_config.write_text(shop_config.read_text() + "\nserve: {port: 9001}\n")
    assert load_serve_config(shop_config).port == 9001
    (tmp_path / "serve.yaml").write_text("serve:\n  prot: 9000\n")
    with pytest.raises(ConfigError, match=r"serve.yaml:2: serve.prot: unknown key; did you mean \"port\""):
        load_serve_config(tmp_path / "serve.yaml")


def test_relative_paths_are_relative_to_the_working_directory(shop_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(shop_config, ["store=here/store"]).store == tmp_path / "here" / "store"
    assert load_config(shop_config, ["store=x"], base=Path("/elsewhere")).store == Path("/elsewhere/x")


def test_an_unknown_key_names_line_suggestion_and_what_is_allowed(shop_config):
    (line,) = mistakes(shop_config, "log_every: 5", "log_evry: 5")
    number = line_of(shop_config, "log_evry")
    assert line.startswith(
        f'{shop_config}:{number}: train.log_evry: unknown key; did you mean "log_every"? allowed: '
    )
    assert "checkpoint_seconds" in line


def test_an_unknown_key_deep_in_a_list_lists_the_keys_of_that_element(shop_config):
    (line,) = mistakes(shop_config, "name: wide, batch_size", "name: wide, batchsize")
    assert f":{line_of(shop_config, 'batchsize')}: train.stages.1.batchsize: unknown key" in line
    assert 'did you mean "batch_size"?' in line
    assert "warmup_steps" in line
    assert "checkpoint_seconds" not in line


def test_an_unknown_key_under_a_tagged_union_lists_the_keys_of_its_kind(shop_config):
    (line,) = mistakes(shop_config, "query: {kind: features,", "query: {kind: features, dropuot: 0.1,")
    assert 'towers.query.dropuot: unknown key; did you mean "dropout"?' in line
    assert "max_length" not in line.replace("ngram", "")


def test_an_unknown_objective_is_answered_with_the_known_ones(shop_config):
    (line,) = mistakes(shop_config, overrides=["train.stages.0.loss.kind=contrastive"])
    assert "train.stages.0.loss: input tag 'contrastive'" in line
    for kind in ("cross_entropy", "hinge", "triplet", "pair", "nce", "supervised_contrastive", "sigmoid"):
        assert f"'{kind}'" in line
    assert "'weighted_sum'" in line


def test_an_unknown_key_inside_a_weighted_sum_lists_the_keys_of_that_part(shop_config):
    loss = "{kind: weighted_sum, first: {kind: cross_entropy}, second: {kind: hinge, margn: 1}}"
    (line,) = mistakes(shop_config, overrides=[f"train.stages.0.loss={loss}"])
    assert (
        'train.stages.0.loss.second.margn: unknown key; did you mean "margin"? allowed: kind, margin' in line
    )
    assert "log_q" not in line


def test_an_unknown_key_of_a_source_lists_the_keys_of_its_format(shop_config):
    (line,) = mistakes(shop_config, "  format: columnar\n", "  format: columnar\n  contxt: []\n")
    assert 'source.contxt: unknown key; did you mean "context"?' in line


def test_a_value_out_of_range_names_line_and_value(shop_config):
    (line,) = mistakes(shop_config, "seed: 1", "seed: -1")
    assert line == f"{shop_config}:3: seed: input should be greater than or equal to 0 (got -1)"


def test_a_missing_key_names_the_section_where_it_belongs(shop_config):
    (line,) = mistakes(shop_config, "name: tiny\n", "")
    assert line == f"{shop_config}:1: name: required, but not given"


def test_a_rule_between_values_names_its_section(shop_config):
    (line,) = mistakes(shop_config, "batch_size: 128", "batch_size: 32")
    assert f":{line_of(shop_config, 'train:')}: train: batch sizes may not shrink" in line


def test_a_history_for_towers_that_read_none_is_refused(shop_config):
    with pytest.raises(ConfigError, match=r"add towers\.query\.history"):
        load_config(shop_config, ["examples.query=history"])
    history = [
        "examples.query=history",
        "towers.shared=false",
        "towers.query={kind: features, history: {id: {}}}",
    ]
    assert load_config(shop_config, history).examples.query == "history"


def test_all_mistakes_are_told_at_once(shop_config):
    shop_config.write_text(
        shop_config.read_text().replace("seed: 1", "seed: x").replace("bootstrap", "boots")
    )
    assert len(mistakes(shop_config)) == 2


def test_a_mistake_in_an_override_names_the_override(shop_config):
    (line,) = mistakes(shop_config, overrides=["train.stages.0.batch_size=1"])
    assert line.startswith("--set train.stages.0.batch_size=1: train.stages.0.batch_size: input should be")


def test_overrides_apply_in_order_and_reach_into_lists(shop_config):
    config = load_config(
        shop_config, ["train.stages.0.steps=5", "train.stages.0.steps=7", "index.factory=Flat"]
    )
    assert config.train.stages[0].steps == 7


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just text"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"x\.yaml"):
        load_config(tmp_path / "x.yaml")


def test_the_resolved_configuration_loads_to_the_same(shop_config, tmp_path):
    config = load_config(shop_config)
    (tmp_path / "resolved.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "resolved.yaml") == config


def test_a_file_counts_by_its_name_in_a_key_wherever_it_lies(shop_config):
    here = portable(load_config(shop_config))
    there = portable(load_config(shop_config, ["source.path=/other/folder/impressions.parquet"]))
    assert here["source"] == there["source"]
    renamed = portable(load_config(shop_config, ["source.path=/other/folder/log.parquet"]))
    assert here["source"] != renamed["source"]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_of_the_repository_is_valid(path):
    assert load_config(path).name == path.stem


def test_the_command_prints_the_resolved_configuration(shop_config):
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", "config", str(shop_config), "--set", "seed=7"],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)
    assert resolved["seed"] == 7
    assert resolved["train"]["early_stopping"]["patience"] == 5
    assert resolved["tracking"] == {"uri": None, "experiment": None}


def test_one_value_of_a_list_that_the_file_leaves_to_its_default_can_be_changed(shop_config):
    text = shop_config.read_text()
    stages = text[text.index("  stages:\n") : text.index("  early_stopping")]
    shop_config.write_text(text.replace(stages, ""))
    usual = load_config(shop_config).train.stages
    changed = load_config(shop_config, ["train.stages.1.batch_size=200"]).train.stages
    assert [stage.batch_size for stage in changed] == [
        usual[0].batch_size,
        200,
        *(s.batch_size for s in usual[2:]),
    ]
    assert changed[1].model_copy(update={"batch_size": usual[1].batch_size}) == usual[1]
    (line,) = mistakes(shop_config, overrides=["train.stages.7.batch_size=200"])
    assert line.endswith(f": '7' is not an index of a list with {len(usual)} elements (from 0)")
