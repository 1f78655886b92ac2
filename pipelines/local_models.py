"""What identifies the local model folders that text towers start from: their content, not their place."""

from features.artifact import digest_of
from pipelines.workspace import Workspace
from towers.encoders.text import TextTowerConfig
from towers.two_tower import TowersConfig


def model_digests(workspace: Workspace, towers: TowersConfig) -> dict[str, str]:
    """Return a digest of the files in each tower's model folder, by `model.query` or `model.document`.

    An absent folder has the digest of an empty one; training then says that it holds no model.
    """
    digests = {}
    for side, tower in (("query", towers.query), ("document", towers.document)):
        if isinstance(tower, TextTowerConfig) and tower.path is not None:
            files = sorted(file for file in tower.path.rglob("*") if file.is_file())
            names = [file.relative_to(tower.path).as_posix() for file in files]
            found = workspace.digests(files).values()
            digests[f"model.{side}"] = digest_of(dict(zip(names, found, strict=True)))
    return digests
