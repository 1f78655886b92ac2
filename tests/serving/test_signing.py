import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from features.artifact import MANIFEST, SIGNATURE, Artifact
from features.errors import BundleError, ConfigError
from serving import signing
from serving.bundle import Bundle, load
from serving.follow import Follower
from serving.signing import SignConfig, sign
from serving.store import Store


def keys(
    folder: Path, name: str, protect: KeySerializationEncryption | None = None
) -> tuple[SignConfig, Path]:
    private = Ed25519PrivateKey.generate()
    folder.mkdir(exist_ok=True)
    secret, public = folder / f"{name}.pem", folder / f"{name}.pub"
    secret.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protect or NoEncryption()))
    secret.chmod(0o600)
    public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return SignConfig(key=secret), public


@pytest.fixture
def copied(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.artifact.path, tmp_path / bundle.bundle_id))


def test_a_signed_bundle_is_the_same_bundle_and_its_key_opens_it(copied: Path, tmp_path: Path):
    mine, public = keys(tmp_path / "keys", "mine")
    _, other = keys(tmp_path / "keys", "other")
    digest = Artifact.read(copied).digest
    sign(copied, mine)
    assert Artifact.read(copied, verify=True).digest == digest
    assert len((copied / SIGNATURE).read_bytes()) == 64
    assert load(copied, trusted_keys=(other, public)).bundle_id == copied.name
    assert load(copied).bundle_id == copied.name


def test_an_unsigned_bundle_one_of_another_key_and_a_damaged_signature_are_refused(
    copied: Path, tmp_path: Path
):
    mine, public = keys(tmp_path / "keys", "mine")
    theirs, _ = keys(tmp_path / "keys", "theirs")
    with pytest.raises(BundleError, match="not signed"):
        load(copied, trusted_keys=(public,))
    sign(copied, theirs)
    with pytest.raises(BundleError, match="none of the 1 trusted keys"):
        load(copied, trusted_keys=(public,))
    sign(copied, mine)
    sound = (copied / SIGNATURE).read_bytes()
    for damaged in (b"", sound[:63], sound + b"\0", bytes([sound[0] ^ 1]) + sound[1:]):
        (copied / SIGNATURE).write_bytes(damaged)
        with pytest.raises(BundleError, match="none of the 1 trusted keys"):
            load(copied, trusted_keys=(public,))
    (copied / SIGNATURE).write_bytes(sound)
    assert load(copied, trusted_keys=(public,)).bundle_id == copied.name


def test_a_manifest_that_was_changed_with_its_digest_after_signing_is_refused(copied: Path, tmp_path: Path):
    mine, public = keys(tmp_path / "keys", "mine")
    sign(copied, mine)
    text = (copied / "manifest.json").read_text()
    (copied / "manifest.json").write_text(text + "\n")  # not even a blank may be added
    assert Artifact.read(copied, verify=True)
    with pytest.raises(BundleError, match="none of the 1 trusted keys"):
        load(copied, trusted_keys=(public,))


def test_what_was_signed_is_what_is_read(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mine, public = keys(tmp_path / "keys", "mine")
    store = Store(tmp_path, (public,))
    copied = Path(shutil.copytree(bundle.artifact.path, store.bundles / bundle.bundle_id))
    sign(copied, mine)
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


def test_another_bundle_in_the_place_of_one_is_not_signed(copied: Path, tmp_path: Path):
    mine, _ = keys(tmp_path / "keys", "mine")
    with pytest.raises(BundleError, match="another bundle than its name says"):
        sign(copied.rename(tmp_path / ("0" * 16)), mine)
    assert not (tmp_path / ("0" * 16) / SIGNATURE).exists()


def test_a_store_with_trusted_keys_does_not_go_back_to_a_bundle_that_no_such_key_signed(tmp_path: Path, make):
    mine, public = keys(tmp_path / "keys", "mine")
    first, unsigned, last = (make.shop(tmp_path, seed=seed).path for seed in range(3))
    for path in (first, last):
        sign(path, mine)
    for path in (first, unsigned, last):
        Store(tmp_path).set_champion(path.name, "promoted")
    champion, passed_over = Store(tmp_path, (public,)).roll_back()
    assert champion.bundle_id == first.name
    assert "not signed" in passed_over[unsigned.name]


def test_signing_again_changes_nothing_and_another_key_replaces_the_signature(copied: Path, tmp_path: Path):
    mine, _ = keys(tmp_path / "keys", "mine")
    theirs, _ = keys(tmp_path / "keys", "theirs")
    sign(copied, mine)
    before = (copied / SIGNATURE).stat()
    sign(copied, mine)
    assert (copied / SIGNATURE).stat() == before
    sign(copied, theirs)
    assert (copied / SIGNATURE).stat().st_ino != before.st_ino
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_a_link_is_no_signature(copied: Path, tmp_path: Path):
    mine, public = keys(tmp_path / "keys", "mine")
    sign(copied, mine)
    (copied / SIGNATURE).rename(tmp_path / "elsewhere")
    (copied / SIGNATURE).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="not signed"):
        load(copied, trusted_keys=(public,))


def test_keys_that_cannot_be_used_are_named(copied: Path, tmp_path: Path):
    mine, public = keys(tmp_path / "keys", "mine")
    locked, _ = keys(tmp_path / "keys", "locked", BestAvailableEncryption(b"word"))
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
            sign(copied, config)
    for mode in (0o640, 0o604, 0o660):
        mine.key.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            sign(copied, mine)
    assert not (copied / SIGNATURE).exists()
    for path, said in ((tmp_path / "absent", "cannot be read"), (mine.key, "no public key")):
        with pytest.raises(ConfigError, match=said):
            load(copied, trusted_keys=(path,))
    assert public.is_file()


def test_a_store_with_trusted_keys_swaps_to_signed_bundles_only(tmp_path: Path, make):
    mine, public = keys(tmp_path / "keys", "mine")
    store = Store(tmp_path, (public,))
    signed, unsigned = make.shop(tmp_path).path, make.shop(tmp_path, seed=1).path
    sign(signed, mine)
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
        "from pathlib import Path; from features.errors import ConfigError; from serving import signing\n"
        "for act in (lambda: signing.check(Path(sys.argv[1]), (Path('key.pub'),), b''),\n"
        "            lambda: signing.sign(Path(sys.argv[1]), signing.SignConfig(key=Path('key.pem')))):\n"
        "    try:\n        act()\n    except ConfigError as error:\n        print(error)\n"
        "signing.check(Path(sys.argv[1]), (), b'')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(copied)], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("install twotower[sign]") == 2
