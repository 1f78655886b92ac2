import pytest

from pipelines.config import load_config
from pipelines.stages import Train
from pipelines.workspace import StageResult


@pytest.fixture
def with_model(tmp_path, shop_config):
    """Return a configuration of text towers that start from a folder, and the folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    tower = f"{{kind: text, path: {folder}}}"
    return load_config(shop_config, [f"towers.query={tower}", f"towers.document={tower}"]), folder


def made(stage):
    return StageResult(stage, "", "digest", cached=False, seconds=0.0, summary="")


def test_other_weights_in_the_same_model_folder_are_other_work(with_model):
    config, folder = with_model
    first = Train(config, made("examples")).key
    assert Train(config, made("examples")).key == first
    (folder / "model.safetensors").write_bytes(b"WEIGHTS, other ones")
    assert Train(config, made("examples")).key != first


def test_equal_models_in_two_places_are_equal_work(with_model, tmp_path, shop_config):
    config, folder = with_model
    elsewhere = tmp_path / "elsewhere" / folder.name
    elsewhere.parent.mkdir()
    folder.rename(elsewhere)
    tower = f"{{kind: text, path: {elsewhere}}}"
    moved = load_config(shop_config, [f"towers.query={tower}", f"towers.document={tower}"])
    folder.mkdir()
    for file in elsewhere.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    assert Train(moved, made("examples")).key == Train(config, made("examples")).key
