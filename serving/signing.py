"""Optional signatures of manifests, so that only bundles of a known maker are served.

A digest tells that a bundle is whole; whoever can write to the store can write a digest too. `sign` puts the
64 bytes of an Ed25519 signature over `manifest.json` into `manifest.sig`, which no digest covers; the
manifest covers every file. Keys are PEM files:

    openssl genpkey -algorithm ed25519 -out sign.pem && chmod 600 sign.pem
    openssl pkey -in sign.pem -pubout -out sign.pub

and `openssl pkeyutl -verify -pubin -inkey sign.pub -rawin -in manifest.json -sigfile manifest.sig` checks one
without this package. Source: RFC 8032.
"""

import hashlib
import os
import stat
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pydantic import Field

from features.artifact import MANIFEST, SIGNATURE, Artifact
from features.config import Config
from features.directories import sync_directory
from features.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

TrustedKey: TypeAlias = "Path | Ed25519PublicKey"
"""A public key, or the PEM file of one."""

_NEEDS = "signatures need the package cryptography; install twotower[sign]"


class SignConfig(Config):
    """With which key new bundles are signed."""

    key: Path = Field(description="Ed25519 private key, a PEM file that only its owner can read.")


def sign(bundle: Artifact, config: SignConfig) -> None:
    """Sign a bundle; one that this key signed already stays as it is.

    Args:
        bundle: As it was read. What another one put in its place since then is not signed.
        config: With which key.

    Raises:
        ConfigError: If the key cannot be used, or cryptography is not installed.
        BundleError: If its manifest is another one now.
    """
    key = read_private_key(config.key)
    manifest = (bundle.path / MANIFEST).read_bytes()
    if hashlib.sha256(manifest).hexdigest() != bundle.fingerprint:
        raise BundleError(f"{bundle.path} holds another bundle than the one that was read; it is not signed")
    signature = key.sign(manifest)  # Ed25519 is deterministic
    final = bundle.path / SIGNATURE
    if final.is_file() and final.read_bytes() == signature:
        return
    staging = bundle.path.parent / f".signature-{uuid.uuid4().hex}"
    with staging.open("wb") as file:
        file.write(signature)
        file.flush()
        os.fsync(file.fileno())
    staging.replace(final)
    sync_directory(bundle.path)


def check(bundle: Path, trusted_keys: Sequence[TrustedKey], manifest: bytes) -> None:
    """Assert that one of the keys signed a bundle's manifest, or that no key is asked for.

    Args:
        bundle: Where `manifest.sig` is.
        trusted_keys: Public keys; none asks for no signature.
        manifest: The bytes that were read of the manifest, and that are parsed afterwards.

    Raises:
        BundleError: If the bundle is not signed, or by another key.
        ConfigError: If a key cannot be used, or cryptography is not installed.
    """
    keys = [read_public_key(one) if isinstance(one, Path) else one for one in trusted_keys]
    if not keys:
        return
    from cryptography.exceptions import InvalidSignature

    try:
        signature = _regular(bundle / SIGNATURE).read_bytes()
    except OSError:
        raise BundleError(
            f"bundle {bundle.name} is refused: it is not signed (no {SIGNATURE}), and trusted_keys are set"
        ) from None
    for key in keys:
        try:
            key.verify(signature, manifest)
        except InvalidSignature:
            continue
        return
    raise BundleError(
        f"bundle {bundle.name} is refused: none of the {len(keys)} trusted keys signed its {MANIFEST}"
    )


def is_signed(bundle: Path) -> bool:
    """Return whether a bundle has a signature, whosever and right or wrong."""
    return (bundle / SIGNATURE).is_file()


def read_private_key(path: Path) -> "Ed25519PrivateKey":
    """Return a private key that others cannot read.

    Raises:
        ConfigError: If it is no such key, others can read it, or cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise ConfigError(_NEEDS) from None
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"sign.key {path} can be read by others than its owner; chmod 600 it")
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"sign.key {path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError):  # the second for one with a password
        raise ConfigError(f"sign.key {path} is no private key in PEM without a password") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"sign.key {path} is no Ed25519 key; openssl genpkey -algorithm ed25519 makes one")
    return key


def read_public_key(path: Path) -> "Ed25519PublicKey":
    """Return a public key.

    Raises:
        ConfigError: If it is no such key, or cryptography is not installed.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError:
        raise ConfigError(_NEEDS) from None
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"trusted key {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"trusted key {path} is no public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"trusted key {path} is no Ed25519 key")
    return key


def _regular(path: Path) -> Path:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise FileNotFoundError(path)
    return path
