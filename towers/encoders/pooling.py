"""From the vectors of a text's tokens to one vector; padding never counts.

Legend: N texts, L tokens, H hidden size.
"""

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["mean", "cls", "max"]


def pool(hidden_NLH: Tensor, mask_NL: Tensor, pooling: Pooling) -> Tensor:
    """Return (N, H).

    Args:
        hidden_NLH: The last layer's output.
        mask_NL: True where there is a token; padding is on the right, and every text has a token.
        pooling: `mean` and `max` over the tokens, `cls` for the first one.
    """
    if pooling == "cls":
        return hidden_NLH[:, 0]
    mask_NL1 = mask_NL.unsqueeze(2)
    if pooling == "max":
        return hidden_NLH.masked_fill(~mask_NL1, torch.finfo(hidden_NLH.dtype).min).amax(dim=1)
    return (hidden_NLH * mask_NL1).sum(dim=1) / mask_NL1.sum(dim=1)
