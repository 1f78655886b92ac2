import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)

from features.artifact import MANIFEST, SIGNATURE, Artifact
from features.errors import BundleError, ConfigError
from serving import signing
from serving.build import IndexConfig
from serving.bundle import Bundle, load
from serving.export import export
from serving.follow import Follower
from serving.signing import SignConfig, sign
from serving.store import Store

Keys = Callable[..., tuple[SignConfig, Path]]


@pytest.fixture
def keys(make_keys: Callable[..., tuple[Path, Path]], tmp_path: Path) -> Keys:
    """Makes pairs of keys by name: a private one as it is configured, and the file of the public one."""
    folder = tmp_path / "keys"
    folder.mkdir()

    def make(name: str, protect: KeySerializationEncryption | None = None) -> tuple[SignConfig, Path]:
        secret, public = make_keys(folder, name, protect)
        return SignConfig(key=secret), public

    return make


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.artifact.path, tmp_path / bundle.bundle_id))


def test_a_signed_bundle_is_the_same_bundle_and_its_key_opens_it(keys: Keys, copied: Path, tmp_path: Path):
    mine, public = keys("mine")
    _, other = keys("other")
    digest = Artifact.read(copied).digest
    sign(Artifact.read(copied), mine)
    assert Artifact.read(copied, verify=True).digest == digest
    assert len((copied / SIGNATURE).read_bytes()) == 64
    assert load(copied, trusted_keys=(other, public)).bundle_id == copied.name
    assert load(copied).bundle_id == copied.name


def test_an_unsigned_bundle_one_of_another_key_and_a_damaged_signature_are_refused(
    keys: Keys, copied: Path, tmp_path: Path
):
    mine, public = keys("mine")
    theirs, _ = keys("theirs")
    with pytest.raises(BundleError, match="not signed"):
        load(copied, trusted_keys=(public,))
    sign(Artifact.read(copied), theirs)
    with pytest.raises(BundleError, match="none of the 1 trusted keys"):
        load(copied, trusted_keys=(public,))
    sign(Artifact.read(copied), mine)
    sound = (copied / SIGNATURE).read_bytes()
    for damaged in (b"", sound[:63], sound + b"\0", bytes([sound[0] ^ 1]) + sound[1:]):
        (copied / SIGNATURE).write_bytes(damaged)
        with pytest.raises(BundleError, match="none of the 1 trusted keys"):
            load(copied, trusted_keys=(public,))
    (copied / SIGNATURE).write_bytes(sound)
    assert load(copied, trusted_keys=(public,)).bundle_id == copied.name


def test_a_manifest_that_was_changed_with_its_digest_after_signing_is_refused(
    keys: Keys, copied: Path, tmp_path: Path
):
    mine, public = keys("mine")
    sign(Artifact.read(copied), mine)
    text = (copied / "manifest.json").read_text()
    (copied / "manifest.json").write_text(text + "\n")  # not even a blank may be added
    assert Artifact.read(copied, verify=True)
    with pytest.raises(BundleError, match="none of the 1 trusted keys"):
        load(copied, trusted_keys=(public,))


def test_what_was_signed_is_what_is_read(
    keys: Keys, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mine, public = keys("mine")
    store = Store(tmp_path, (public,))
    copied = Path(shutil.copytree(bundle.artifact.path, store.bundles / bundle.bundle_id))
    sign(Artifact.read(copied), mine)
    sound, check = (copied / MANIFEST).read_bytes(), signing.check

    def swapped_after(path: Path, trusted_keys: Sequence[Path], manifest: bytes) -> None:
        check(path, trusted_keys, manifest)
        forged = json.loads(manifest)
        forged["content"]["measured"] = {"forged": True}  # no digest covers it
        (path / MANIFEST).write_text(json.dumps(forged))

    monkeypatch.setattr(signing, "check", swapped_after)
    assert "measured" not in store.bundle(copied.name).content
    (copied / MANIFEST).write_bytes(sound)
    with pytest.raises(BundleError, match="changed while it was being read"):  # the child reads it again
        load(copied, trusted_keys=(public,))
    (copied / MANIFEST).write_bytes(sound)
    monkeypatch.setattr(signing, "check", check)
    assert load(copied, trusted_keys=(public,)).bundle_id == bundle.bundle_id


def test_another_bundle_in_the_place_of_one_is_not_signed(keys: Keys, copied: Path, tmp_path: Path):
    mine, _ = keys("mine")
    read = Artifact.read(copied)
    forge(copied)
    with pytest.raises(BundleError, match="another bundle than the one that was read"):
        sign(read, mine)
    assert not (copied / SIGNATURE).exists()


@pytest.fixture
def exported(bundle: Bundle, tmp_path: Path) -> Callable[[SignConfig | None], Path]:
    """Exports the small shop once more into `tmp_path`; the id is always the same."""
    shop = bundle.artifact.path.parent.parent

    def export_it(key: SignConfig | None) -> Path:
        checkpoint = shop / "checkpoints" / "0"
        config = IndexConfig(k=5)
        return export(shop / "examples", checkpoint, None, tmp_path / "bundles", config, sign=key).path

    return export_it


def forge(path: Path) -> None:
    """Change what no digest covers of a bundle's manifest."""
    forged = json.loads((path / MANIFEST).read_text())
    forged["content"]["measured"] = {"forged": True}
    (path / MANIFEST).write_text(json.dumps(forged))


def test_what_somebody_put_where_a_signed_bundle_is_to_be_is_not_signed(
    keys: Keys,
    exported: Callable[[SignConfig | None], Path],
    make: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    mine, public = keys("mine")
    path = exported(None)
    forge(path)
    assert Artifact.read(exported(None)).content["measured"] == {"forged": True}  # an equal one stays
    with monkeypatch.context() as patch:  # who serves it never finds nothing under its name
        rename = Path.rename
        patch.setattr(Path, "rename", lambda one, to: pytest.fail("gone") if one == path else rename(one, to))
        assert exported(mine) == path
    assert "measured" not in load(path, trusted_keys=(public,)).artifact.content
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    signed = path.stat()
    assert exported(mine).stat() == signed  # once it is signed it stays, too
    path.rename(tmp_path / path.name)
    path.symlink_to(tmp_path / path.name)  # whole and signed, but who knows for how long
    assert exported(mine) == path
    assert not path.is_symlink()
    assert load(path, trusted_keys=(public,)).bundle_id == path.name
    aside = [entry for entry in path.parent.iterdir() if entry != path]
    assert [entry.name.split("-")[0] for entry in aside] == [".damaged"]
    older = make.shop(tmp_path / "older", seed=7)
    sign(older, mine)
    shutil.rmtree(path)
    shutil.copytree(older.path, path)
    assert exported(mine) == path
    assert load(path, trusted_keys=(public,)).bundle_id == path.name


def test_name_and_signature_of_a_bundle_are_on_the_disk_when_it_is_published(
    keys: Keys, exported: Callable[[SignConfig | None], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mine, _ = keys("mine")
    flushed: list[tuple[str, list[str]]] = []
    fsync = os.fsync

    def noted(number: int) -> None:
        path = Path(f"/proc/self/fd/{number}").readlink()
        if path.is_dir():
            flushed.append((path.name, [entry.name for entry in path.iterdir()]))
        fsync(number)

    monkeypatch.setattr(os, "fsync", noted)
    path = exported(mine)
    assert any(name.startswith(".export-") and SIGNATURE in held for name, held in flushed)
    assert flushed[-1][0] == "bundles"
    assert path.name in flushed[-1][1]


def test_a_bundle_under_the_id_of_another_is_not_read(
    keys: Keys, bundle: Bundle, make: SimpleNamespace, tmp_path: Path
):
    mine, public = keys("mine")
    older = make.shop(tmp_path, seed=1).path
    sign(Artifact.read(older), mine)
    older.rename(older.with_name(bundle.bundle_id))
    for store in (Store(tmp_path), Store(tmp_path, (public,))):
        with pytest.raises(BundleError, match=f"holds bundle {older.name}; its directory must carry its id"):
            store.bundle(bundle.bundle_id)


def test_a_store_with_trusted_keys_does_not_go_back_to_a_bundle_that_no_such_key_signed(
    keys: Keys, tmp_path: Path, make
):
    mine, public = keys("mine")
    first, unsigned, last = (make.shop(tmp_path, seed=seed).path for seed in range(3))
    for path in (first, last):
        sign(Artifact.read(path), mine)
    for path in (first, unsigned, last):
        Store(tmp_path).set_champion(path.name, "promoted")
    champion, passed_over = Store(tmp_path, (public,)).roll_back()
    assert champion.bundle_id == first.name
    assert "not signed" in passed_over[unsigned.name]


def test_signing_again_changes_nothing_and_another_key_replaces_the_signature(
    keys: Keys, copied: Path, tmp_path: Path
):
    mine, _ = keys("mine")
    theirs, _ = keys("theirs")
    sign(Artifact.read(copied), mine)
    before = (copied / SIGNATURE).stat()
    sign(Artifact.read(copied), mine)
    assert (copied / SIGNATURE).stat() == before
    sign(Artifact.read(copied), theirs)
    assert (copied / SIGNATURE).stat().st_ino != before.st_ino
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_link_is_no_signature(keys: Keys, copied: Path, tmp_path: Path):
    mine, public = keys("mine")
    sign(Artifact.read(copied), mine)
    (copied / SIGNATURE).rename(tmp_path / "elsewhere")
    (copied / SIGNATURE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="not signed"):
        load(copied, trusted_keys=(public,))


def test_keys_that_cannot_be_used_are_named(keys: Keys, copied: Path, tmp_path: Path):
    mine, public = keys("mine")
    locked, _ = keys("locked", BestAvailableEncryption(b"word"))
    curve = tmp_path / "keys" / "curve.pem"
    curve.write_bytes(
        generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    curve.chmod(0o600)
    for config, said in (
        (locked, "without a password"),
        (SignConfig(key=curve), "no Ed25519 key"),
        (SignConfig(key=tmp_path / "absent"), "cannot be read"),
    ):
        with pytest.raises(ConfigError, match=said):
            sign(Artifact.read(copied), config)
    for mode in (0o640, 0o604, 0o660):
        mine.key.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            sign(Artifact.read(copied), mine)
    assert not (copied / SIGNATURE).exists()
    for path, said in ((tmp_path / "absent", "cannot be read"), (mine.key, "no public key")):
        with pytest.raises(ConfigError, match=said):
            load(copied, trusted_keys=(path,))
    assert public.is_file()


def test_a_store_with_trusted_keys_swaps_to_signed_bundles_only(keys: Keys, tmp_path: Path, make):
    mine, public = keys("mine")
    store = Store(tmp_path, (public,))
    signed, unsigned = make.shop(tmp_path).path, make.shop(tmp_path, seed=1).path
    sign(Artifact.read(signed), mine)
    store.set_champion(signed.name, "first")
    follower = Follower(store)
    follower.check()
    with pytest.raises(BundleError, match="not signed"):
        store.set_champion(unsigned.name, "slipped in")
    Store(tmp_path).set_champion(unsigned.name, "slipped in")
    follower.check()
    assert follower.served is not None
    assert follower.served.retriever.bundle.bundle_id == signed.name
    assert follower.refusal is not None
    assert "not signed" in follower.refusal.message


def test_without_cryptography_the_message_names_the_extra(copied: Path, tmp_path: Path):
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from pathlib import Path; from features.artifact import Artifact\n"
        "from features.errors import ConfigError; from serving import signing\n"
        "read, config = Artifact.read(Path(sys.argv[1])), signing.SignConfig(key=Path('key.pem'))\n"
        "for act in (lambda: signing.check(read.path, (Path('key.pub'),), b''),\n"
        "            lambda: signing.sign(read, config)):\n"
        "    try:\n        act()\n    except ConfigError as error:\n        print(error)\n"
        "signing.check(Path(sys.argv[1]), (), b'')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(copied)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("install twotower[sign]") == 2
