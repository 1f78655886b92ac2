"""What `benchmarks/loss.py` times: tiled losses, plain ones, bare products, and the peers' own classes."""

import importlib.util
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import normalize

from features.errors import ConfigError
from towers.exclusions import Exclusions
from towers.losses import CrossEntropyConfig, HingeConfig, LossConfig, SigmoidConfig, build_loss
from towers.tiled import tiled_loss
from towers.tiles import TilingConfig, products_in

TEMPERATURE = 0.07
CONFIGS: dict[str, LossConfig] = {
    "cross-entropy": CrossEntropyConfig(),
    "hinge": HingeConfig(margin=0.5),
    "sigmoid": SigmoidConfig(),
}
Work = Callable[[], float]


class Inputs:
    """A batch of unit vectors, half aligned with their positives."""

    def __init__(self, batch: int, dimension: int) -> None:
        generator = torch.Generator().manual_seed(0)
        query = normalize(torch.randn(batch, dimension, generator=generator))
        document = normalize(query + normalize(torch.randn(batch, dimension, generator=generator)))
        self.query, self.document = query.requires_grad_(), document.requires_grad_()
        self.exclusions = Exclusions.none(batch, batch)

    def differentiate(self, loss: Tensor) -> float:
        """Run the backward pass and return the loss."""
        torch.autograd.grad(loss, (self.query, self.document))
        return loss.item()

    def tiled(self, config: LossConfig, tiling: TilingConfig) -> Work:
        """Return the tiled loss, forward and backward."""
        return lambda: self.differentiate(
            tiled_loss(
                config, self.query, self.document, self.exclusions, temperature=TEMPERATURE, tiling=tiling
            )
        )

    def plain(self, config: LossConfig) -> Work:
        """Return the plain loss, forward and backward."""
        mask = self.exclusions.dense()
        loss = build_loss(config)
        return lambda: self.differentiate(loss(self.query @ self.document.T, mask, temperature=TEMPERATURE))

    @torch.no_grad()
    def products(self, tiling: TilingConfig, gradients: bool) -> float:
        """Compute the products that nobody avoids, block by block: the scores' or the gradients' as well."""
        query_gradient, document_gradient = torch.zeros_like(self.query), torch.zeros_like(self.document)
        block = torch.empty(tiling.rows, tiling.columns)
        columns = range(0, len(self.document), tiling.columns)
        for row in range(0, len(self.query), tiling.rows):
            query = self.query[row : row + tiling.rows]
            for column in columns:
                document = self.document[column : column + tiling.columns]
                score = block.view(-1)[: len(query) * len(document)].view(len(query), len(document))
                torch.mm(query, document.T, out=score)
                if gradients:
                    query_gradient[row : row + tiling.rows].addmm_(score, document)
                    document_gradient[column : column + tiling.columns].addmm_(score.T, query)
        return 0.0


def open_clip(inputs: Inputs) -> Work:
    """Return open_clip's loss. Raises PackageNotFoundError if it is not installed."""
    module = load_file(Path(str(distribution("open_clip_torch").locate_file("open_clip/loss.py"))))
    loss = module.ClipLoss()
    return lambda: inputs.differentiate(loss(inputs.query, inputs.document, 1 / TEMPERATURE))


def cached_sentence_transformers(inputs: Inputs, mini_batch: int) -> Work:
    """Return sentence-transformers' cached loss. Raises PackageNotFoundError if it is not installed."""
    version("sentence-transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.util import dot_score

    loss = CachedMultipleNegativesRankingLoss(
        SentenceTransformer(modules=[torch.nn.Identity()], device="cpu"),  # never asked to encode
        scale=1 / TEMPERATURE,
        similarity_fct=dot_score,
        mini_batch_size=mini_batch,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )

    def work() -> float:
        sides = [
            [part.detach().requires_grad_() for part in torch.split(side, mini_batch)]
            for side in (inputs.query, inputs.document)
        ]
        return float(loss.calculate_loss(sides, with_backward=True))

    return work


def load_file(path: Path) -> ModuleType:
    """Import one file of a package without the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def variants(inputs: Inputs, tiling: TilingConfig) -> tuple[dict[str, Work], dict[str, str]]:
    """Return what is timed, by name, and why something is not."""
    cross_entropy, hinge = CONFIGS["cross-entropy"], CONFIGS["hinge"]
    timed: dict[str, Work] = {
        "one product": lambda: inputs.products(tiling, gradients=False),
        "tiled hinge": inputs.tiled(hinge, tiling),
        "plain hinge": inputs.plain(hinge),
        "three products": lambda: inputs.products(tiling, gradients=True),
        "tiled cross-entropy": inputs.tiled(cross_entropy, tiling),
        "tiled sigmoid": inputs.tiled(CONFIGS["sigmoid"], tiling),
    }
    skipped: dict[str, str] = {}
    peers: dict[str, Callable[[], Work]] = {
        "open_clip": lambda: open_clip(inputs),
        "sentence-transformers cached, 512": lambda: cached_sentence_transformers(inputs, 512),
    }
    for name, build in peers.items():
        try:
            timed[name] = build()
        except PackageNotFoundError as error:
            skipped[name] = f"skipped: {error.name} is not installed"
    name = "tiled cross-entropy, bfloat16"
    try:
        with products_in("bfloat16", torch.device("cpu")):
            timed[name] = inputs.tiled(cross_entropy, tiling.model_copy(update={"precision": "bfloat16"}))
    except ConfigError:
        skipped[name] = "skipped: this processor has no bfloat16 products"
    return timed, skipped
