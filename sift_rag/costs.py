"""What an answer costs: arithmetic, and money by a price table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sift_rag.cases import Reply
from sift_rag.sizes import ModelSize

Tokens = TypeVar("Tokens", int, float, NDArray[np.float64])


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What tokens and time cost.

    Attributes:
        input: Money per million tokens read in the prompt.
        output: Money per million tokens written.
        trained: Money per million tokens gone through in training.
        hour: Money per hour of the machine, for the whole time of a reply.
        currency: What the money is called.

    Raises:
        ValueError: A price is negative, infinite or no number.
    """

    input: float = 0.0
    output: float = 0.0
    trained: float = 0.0
    hour: float = 0.0
    currency: str = "USD"

    def __post_init__(self) -> None:
        for name in ("input", "output", "trained", "hour"):
            price = getattr(self, name)
            number = isinstance(price, int | float) and not isinstance(price, bool)
            if not number or not 0 <= price < math.inf:
                raise ValueError(
                    f"The price {name!r} is {price!r}; it must be a number, 0 or more: money per "
                    "million tokens, or per hour of the machine."
                )

    def of(self, reply: Reply) -> float | None:
        """The money that a reply costs; None where something that has a price is not known.

        A reply that tells of tokens, but of none trained, has trained none.
        """
        tokens = reply.tokens
        counted = [
            (self.input / 1e6, tokens.get("in")),
            (self.output / 1e6, tokens.get("out")),
            (self.trained / 1e6, tokens.get("trained", 0 if tokens else None)),
            (self.hour / 3600, reply.seconds.get("total")),
        ]
        parts = [(price, amount) for price, amount in counted if price]
        known = [price * amount for price, amount in parts if amount is not None]
        return sum(known) if known and len(known) == len(parts) else None


def flops(size: ModelSize, *, prompt: int, written: int, trained: int, window: int) -> float:
    """Floating-point operations of one answer, an estimate.

    A token's way through N parameters takes 2 N, and attention at its position i in the text
    4 layers width i: the scores and the weighted sum, 2 each. Over a text of n tokens that is the
    2 N + 2 n_layer n_ctx d_attn per token of Kaplan et al. 2020 (arXiv 2001.08361, section 2.1)
    with n_ctx = n. Written tokens are read after the prompt, each once, as a cache keeps what was
    read. Training of an adapter goes forward and back again with respect to activations only, that
    is another forward's worth; the adapter's own share is left out.

    Args:
        size: Of the model.
        prompt: Tokens read.
        written: Tokens written.
        trained: Tokens gone through in training, each epoch counting.
        window: Tokens of one training step at most: attention reaches no further.
    """
    return float(reading(size, prompt + written) + training(size, trained, window))


def reading(size: ModelSize, tokens: Tokens) -> Tokens:
    """Operations of reading a text of so many tokens, or of writing it after none."""
    return 2 * size.parameters * tokens + 2 * size.layers * size.width * tokens**2


def training(size: ModelSize, tokens: Tokens, window: int) -> Tokens:
    """Operations of training on so many tokens, in steps of at most `window`."""
    full, rest = tokens // window, tokens % window
    return 2 * (full * reading(size, window) + reading(size, rest))
