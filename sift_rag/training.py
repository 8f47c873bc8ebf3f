"""LoRA test-time training: adapt a model to some texts for one question.

A plain loop over the texts, one step each, unpadded; the adapter's weights are all that changes.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sift_rag.adapters import Adapter

Stopped = Literal["completed", "callback", "cancelled", "non_finite", "diverged"]

_TOLERANCE = (
    1.0  # nats a token: each token e times less likely is not what one text does to another
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How the model is adapted to the selected passages.

    One gradient step is taken for each text of at most `window` tokens, in the order of selection,
    with Adam at a constant rate. The base's own dropout stays off: a few steps on what is to be
    remembered want no noise, and the same call gives the same answer.

    Attributes:
        rank: Rank of the adapter; 16 holds a handful of passages and costs a tenth of the model.
        alpha: The adapter's output is scaled by alpha / rank; twice the rank is the common choice.
        learning_rate: Adam's rate. For a model of 0.26M parameters 3e-3 was the best of four rates
            on three domains, 1e-3 the second; larger models are used to lower ones.
        epochs: Passes through the texts. Facts need several: a single pass moves little.
        steps: Number of gradient steps, whatever `epochs` says: the texts are gone through in
            order, again and again, until it is reached. None takes `epochs` whole passes.
        window: Tokens of one step at most; longer texts are cut into several. Memory grows with it.
        target_modules: The layers that get an adapter: "all-linear" (all but the output layer),
            or the ends of their names, such as ("q_proj", "v_proj").
        max_grad_norm: Gradients are scaled down to this Euclidean norm.
        seed: Of the adapter's first weights. The process's own random state is never touched.

    Raises:
        ValueError: If a value is out of range.
        TypeError: If `target_modules` is no string and no sequence of strings.
    """

    rank: int = 16
    alpha: float = 32.0
    learning_rate: float = 1e-3
    epochs: int = 3
    steps: int | None = None
    window: int = 1024
    target_modules: str | tuple[str, ...] = "all-linear"
    max_grad_norm: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "steps"):
            _check_count(name, getattr(self, name), 1)
        _check_count("window", self.window, 2)  # the second token is the first that has a loss
        _check_count("seed", self.seed, 0)
        for name, most in (("alpha", 1e6), ("learning_rate", 1.0), ("max_grad_norm", 1e6)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value <= most:
                raise ValueError(f"{name} is {value!r}; it must be above 0 and at most {most:g}.")
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", _names(self.target_modules))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """What happened in one test-time training.

    Attributes:
        losses: Nats per predicted token of each step's text, before that step's update.
        steps: Updates made: len(losses), or less by the one whose loss or gradient ended it.
        tokens: Tokens that went through the model.
        seconds: Time of the steps, the callbacks between them left out.
        reset_seconds: Time of making the adapter and its optimizer fresh.
        stopped: "completed"; "callback" stopped it; "cancelled"; "non_finite": a loss or gradient
            was NaN or infinite; "diverged": a text was predicted worse than by the
            base model, by more than a nat a token.
        adapter_used: Whether the answer rests on the adapter. False after the last three, and
            where no step was taken.
    """

    losses: tuple[float, ...]
    steps: int
    tokens: int
    seconds: float
    reset_seconds: float
    stopped: Stopped
    adapter_used: bool


def windows(texts: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Cut token lists into pieces of at most `size`, in order.

    A piece begins with the last token of the one before, so that each token but a text's first is
    predicted exactly once. Texts of fewer than two tokens have nothing to predict and give none.
    """
    return [
        list(text[start : start + size])
        for text in texts
        for start in range(0, len(text) - 1, size - 1)
    ]


def train(
    model: PreTrainedModel,
    adapter: Adapter,
    texts: Sequence[Sequence[int]],
    config: TrainingConfig,
    *,
    interrupted: Callable[[], Stopped | None] = lambda: None,
    on_step: Callable[[dict[str, Any]], None] = lambda step: None,
) -> TrainingReport:
    """Reset the adapter and take one gradient step for each text; call it while attached.

    Args:
        model: In evaluation mode.
        adapter: Attached to the model.
        texts: Token ids, in the order of training; repeats are steps of their own.
        config: How. Its `window` must not exceed the model's context.
        interrupted: Asked before each step: a reason to end here, or None.
        on_step: Told step (from 1), steps (planned), loss, tokens and seconds after each step.

    Raises:
        ValueError: If no text has two tokens.
    """
    pieces = windows(texts, config.window)
    if not pieces:
        raise ValueError("The documents have no text to train on: each has less than two tokens.")
    total = config.steps or config.epochs * len(pieces)
    began = time.perf_counter()
    adapter.reset(seed=config.seed, alpha=config.alpha)
    optimizer = torch.optim.Adam([adapter.weights], lr=config.learning_rate, fused=True)
    reset_seconds = time.perf_counter() - began
    losses: list[float] = []
    tokens, seconds = 0, 0.0
    stopped: Stopped | None = None
    for piece in islice(cycle(pieces), total):
        if stopped := interrupted():
            break
        began = time.perf_counter()
        ids = torch.tensor([piece], device=adapter.weights.device)  # (1, T)
        first = losses[0] if losses else None
        loss, stopped = _step(model, adapter, optimizer, ids, config, first)
        took = time.perf_counter() - began
        losses.append(loss)
        tokens, seconds = tokens + len(piece), seconds + took
        if stopped:
            break
        told = {"step": len(losses), "steps": total, "loss": loss}
        on_step(told | {"tokens": len(piece), "seconds": took})
    failed = stopped in ("non_finite", "diverged")
    return TrainingReport(
        losses=tuple(losses),
        steps=len(losses) - failed,
        tokens=tokens,
        seconds=seconds,
        reset_seconds=reset_seconds,
        stopped=stopped or "completed",
        adapter_used=not failed and stopped != "cancelled" and len(losses) > 0,
    )


def _step(
    model: PreTrainedModel,
    adapter: Adapter,
    optimizer: torch.optim.Optimizer,
    ids: Tensor,
    config: TrainingConfig,
    first: float | None,
) -> tuple[float, Stopped | None]:
    """Loss and update on one text; the update is left out where it would break the adapter."""
    loss = _loss(model, ids)
    value = loss.item()
    if not math.isfinite(value):
        return value, "non_finite"
    # The base is asked (one more forward) only where the loss is far above the first, its own.
    suspicious = first is not None and value > first + _TOLERANCE
    if suspicious and value > _base_loss(model, adapter, ids) + _TOLERANCE:
        return value, "diverged"
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_([adapter.weights], config.max_grad_norm)
    if not math.isfinite(norm.item()):
        return value, "non_finite"
    optimizer.step()
    adapter.clear()
    return value, None


def _loss(model: PreTrainedModel, ids: Tensor) -> Tensor:
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]  # (T - 1, V)
    return F.cross_entropy(logits.float(), ids[0, 1:])


@torch.no_grad()
def _base_loss(model: PreTrainedModel, adapter: Adapter, ids: Tensor) -> float:
    weights = adapter.weights.data  # .data: the step's graph does not see the values come and go
    kept = weights.clone()
    weights.zero_()
    loss = _loss(model, ids).item()
    weights.copy_(kept)
    return loss


def _check_count(name: str, value: object, least: int) -> None:
    if name == "steps" and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}.")


def _names(value: object) -> tuple[str, ...]:
    names = tuple(value) if isinstance(value, list | tuple) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f'target_modules is {value!r}; it must be "all-linear", a regular expression, or a '
            "list of names of layers."
        )
    return names
