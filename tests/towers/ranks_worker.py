"""One rank of the steps that `test_distributed` compares; started by torchrun, or called in the test."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from towers.collate import Batches
from towers.data import read_training_data
from towers.distributed import Ranks
from towers.losses import CrossEntropyConfig, HingeConfig, LossConfig, TripletConfig, WeightedSumConfig
from towers.negatives import Scope
from towers.objective import build_objective
from towers.step import Inputs, Means, take_step
from towers.two_tower import TowersConfig, build_two_tower

TOWER = {
    "kind": "features",
    "text": {"width": 8, "word_buckets": 256, "ngram_buckets": 1, "ngram_max": 0},
    "hidden": [16],
    "dropout": 0.4,
}
TOWERS = TowersConfig.model_validate(
    {"dimension": 8, "learn_temperature": True, "query": TOWER, "document": TOWER}
)
ENTROPY = CrossEntropyConfig(list_weight=1.0)
SUM = WeightedSumConfig(
    first=CrossEntropyConfig(), second=HingeConfig(margin=0.3), weight_from=0.5, weight_to=0.5
)
CASES: dict[str, tuple[int, Scope, int | None, bool, LossConfig]] = {
    "plain": (40, "batch", None, False, ENTROPY),
    "cached": (40, "own", 7, False, ENTROPY),
    "tiled": (40, "batch", None, True, ENTROPY),
    "cached, tiled": (41, "batch", 7, True, SUM),
    "one objective for all ranks": (40, "own", 7, False, TripletConfig()),
    "fewer chunks than ranks": (5, "own", 64, False, ENTROPY),
    "fewer rows than ranks": (2, "own", 64, True, ENTROPY),
}
"""Batch size, who sees unclicked documents, rows encoded at once, tiles, objective."""


def one_step(examples: Path, case: str, ranks: Ranks) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Take a step; return its loss and gradient norm, and the gradient of every weight."""
    size, scope, encode_rows, tiled, loss = CASES[case]
    data = read_training_data(examples)
    torch.manual_seed(0)
    model = build_two_tower(TOWERS, data.documents, data.queries)
    model.train(encode_rows is not None)  # dropout is drawn by chunk, and these would differ
    inputs = Inputs(model.prepare_queries(data.queries), model.prepare_documents(data.documents))
    batch = Batches(data, size, 2, scope, (0,)).batch(0)
    objective = build_objective(loss, tiled=tiled)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = take_step(model, inputs, batch, objective, optimizer, Means(None, encode_rows, ranks))
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": step.loss, "gradient_norm": step.gradient_norm}, gradients


def main(examples: Path, target: Path) -> None:
    """Take every step as one rank of several and write what came out."""
    dist.init_process_group("gloo")
    reduced: list[int] = []
    all_reduce = dist.all_reduce

    def counted(*arguments: Any, **options: Any) -> Any:
        reduced.append(1)
        return all_reduce(*arguments, **options)

    dist.all_reduce = counted
    ranks = Ranks.of_group()
    for case in CASES:
        reduced.clear()
        numbers, gradients = one_step(examples, case, ranks)
        save_file(gradients, target / f"{case}-{ranks.rank}.safetensors")
        numbers["all_reduces"] = len(reduced)
        numbers["agreed"] = ranks.agreed({"rank": float(ranks.rank)})["rank"]
        (target / f"{case}-{ranks.rank}.json").write_text(json.dumps(numbers), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
