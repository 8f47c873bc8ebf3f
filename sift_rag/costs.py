"""What an answer costs by a price table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sift_rag.cases import Reply


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
