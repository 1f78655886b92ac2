import os

# Before torch, faiss or DuckDB start their threads: spinning ones cost seconds where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


def pytest_configure(config: pytest.Config) -> None:
    # Ibis 12 calls what DuckDB 2 has renamed; nothing of ours does.
    config.addinivalue_line("filterwarnings", "ignore:fetch_arrow_table:DeprecationWarning")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the real data in ../shared/data; README says where to get each set")
    return SHARED_DATA


@pytest.fixture(scope="session")
def make_keys() -> Callable[..., tuple[Path, Path]]:
    """Makes a pair of Ed25519 keys, a private PEM file that only its owner can read, and its public one."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )

    def make(folder: Path, name: str = "sign", protect: Any = None) -> tuple[Path, Path]:
        private = Ed25519PrivateKey.generate()
        secret, public = folder / f"{name}.pem", folder / f"{name}.pub"
        secret.touch(0o600)
        secret.write_bytes(
            private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protect or NoEncryption())
        )
        public.write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return secret, public

    return make
