from pathlib import Path

import pytest

from features import directories
from features.directories import exchange, replace_directory


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "one", tmp_path / "other"


@pytest.mark.parametrize("flag", [directories._EXCHANGE, 1 << 20])  # the second is refused by every kernel
def test_two_directories_exchange_their_names(
    two: tuple[Path, Path], flag: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(directories, "_EXCHANGE", flag)
    one, other = two
    before = one.stat().st_ino
    exchange(one, other)
    assert (other.stat().st_ino, (one / "file").read_text()) == (before, "other")
    assert sorted(one.parent.iterdir()) == [one, other]


def test_the_name_of_a_directory_is_never_without_one(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Path, "rename", lambda *_: pytest.fail("it took more than one step"))
    exchange(*two)
    assert (two[1] / "file").read_text() == "one"


def test_an_exchange_in_three_steps_that_fails_leaves_all_as_it_was(
    two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
):
    one, other = two
    rename = Path.rename

    def failing(path: Path, to: Path) -> Path:
        if path == one:
            raise PermissionError("not this one")
        return rename(path, to)

    monkeypatch.setattr(directories, "_EXCHANGE", 1 << 20)
    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(PermissionError):
        exchange(one, other)
    assert sorted(one.parent.iterdir()) == [one, other]
    assert (other / "file").read_text() == "other"


def test_an_exchange_with_nothing_says_what_is_missing(two: tuple[Path, Path]):
    with pytest.raises(FileNotFoundError, match="absent"):
        exchange(two[0], two[0].with_name("absent"))
    assert (two[0] / "file").read_text() == "one"


def test_a_directory_replaces_a_link_and_leaves_what_it_led_to(two: tuple[Path, Path], tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to(two[1])
    replace_directory(two[0], link)
    assert not link.is_symlink()
    assert (link / "file").read_text() == "one"
    assert (two[1] / "file").read_text() == "other"
    assert sorted(tmp_path.iterdir()) == [link, two[1]]
