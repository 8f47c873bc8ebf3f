"""How large a model is, for estimates of its arithmetic."""

from dataclasses import dataclass


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
