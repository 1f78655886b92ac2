"""The files beside a transformer that make its folder load with `SentenceTransformer(path)`."""

from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from features.artifact import write_json
from towers.encoders.pooling import Pooling

DENSE = Path("2_Dense", "model.safetensors")
"""Where the projector's `linear.weight` and `linear.bias` lie."""


def write_modules(
    directory: Path, pooling: Pooling, hidden: int, projector: nn.Linear | None, *, unit: bool
) -> None:
    """Write `modules.json` and a folder for each module after the transformer.

    The names are those that every release of sentence-transformers since 2 reads.

    Args:
        directory: Where the transformer and its tokenizer already are.
        pooling: How tokens become one vector.
        hidden: Size of the transformer's output.
        projector: The linear layer after pooling, if there is one.
        unit: Whether vectors are brought to unit length at the end.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    (directory / "1_Pooling").mkdir(exist_ok=True)
    modes = {
        "cls": "pooling_mode_cls_token",
        "mean": "pooling_mode_mean_tokens",
        "max": "pooling_mode_max_tokens",
    }
    write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": hidden, **{name: mode == pooling for mode, name in modes.items()}},
    )
    if projector is not None:
        modules.append((DENSE.parent.name, "Dense"))
        (directory / DENSE.parent).mkdir(exist_ok=True)
        write_json(
            directory / DENSE.parent / "config.json",
            {
                "in_features": projector.in_features,
                "out_features": projector.out_features,
                "bias": True,
                "activation_function": "torch.nn.modules.linear.Identity",
            },
        )
        weights = {"linear.weight": projector.weight.detach(), "linear.bias": projector.bias.detach()}
        save_file(weights, directory / DENSE)
    if unit:
        modules.append(("3_Normalize", "Normalize"))
        (directory / "3_Normalize").mkdir(exist_ok=True)
    write_json(
        directory / "modules.json",
        [
            {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{name}"}
            for place, (path, name) in enumerate(modules)
        ],
    )


def write_settings(directory: Path, max_length: int, prefix: str, *, unit: bool) -> None:
    """Write the token limit, and the prefix as the prompt that is used when none is named."""
    write_json(
        directory / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False}
    )
    write_json(
        directory / "config_sentence_transformers.json",
        {
            "prompts": {"prefix": prefix} if prefix else {},
            "default_prompt_name": "prefix" if prefix else None,
            "similarity_fn_name": "cosine" if unit else "dot",
        },
    )
