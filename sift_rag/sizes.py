"""How large a model is, and the arithmetic that its answers take, an estimate."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Tokens = TypeVar("Tokens", int, float, NDArray[np.float64])


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What an estimate of a model's arithmetic needs.

    Attributes:
        parameters: Weights that a token goes through: all but the embedding table, unless that is
            the output layer too.
        layers: Layers; each is counted as one with attention.
        width: Numbers that stand for a token between two layers.
    """

    parameters: int
    layers: int
    width: int


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
