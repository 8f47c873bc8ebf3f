"""LoRA test-time training: adapt a model to some examples for one question.

A plain loop over the examples, one step each, unpadded; the adapter's weights are all that changes.
Probes, texts that are not trained on, are predicted before and after: where the adapter predicts
them worse than the base, it has learnt something that does harm, and is not used.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import cycle, islice
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from sift_rag.adapters import Adapter
from sift_rag.generation import keeps_logits
from sift_rag.lessons import Example, windows
from sift_rag.training_config import BROKEN, Stopped, TrainingConfig, TrainingReport

__all__ = ["BROKEN", "Stopped", "TrainingConfig", "TrainingReport", "checked", "measure", "train"]

_TOLERANCE = (
    1.0  # nats a token: each token e times less likely is not what one text does to another
)
_TELLING = 8  # tokens predicted, of which the mean says something


def train(
    model: PreTrainedModel,
    adapter: Adapter,
    texts: Sequence[Sequence[int] | Example],
    config: TrainingConfig,
    *,
    probes: Mapping[str, Sequence[Example]] = MappingProxyType({}),
    initial: Tensor | None = None,
    interrupted: Callable[[], Stopped | None] = lambda: None,
    on_step: Callable[[dict[str, Any]], None] = lambda step: None,
) -> TrainingReport:
    """Reset the adapter and take one gradient step for each example; call it while attached.

    Args:
        model: In evaluation mode.
        adapter: Attached to the model.
        texts: Token ids, or examples, in the order of training; repeats are steps of their own.
        config: How. Its `window` must not exceed the model's context.
        probes: Examples that are not trained on, by name, for the guard; `early_stop` looks at
            those named "held_out".
        initial: (n,) weights to begin with, in place of a fresh adapter's.
        interrupted: Asked before each step: a reason to end here, or None.
        on_step: Told step (from 1), steps (planned), loss, tokens and seconds after each step.

    Raises:
        ValueError: If no text has two tokens.
    """
    began = time.perf_counter()
    pieces = windows(texts, config.window)
    if not pieces:
        raise ValueError("The documents have no text to train on: each has less than two tokens.")
    adapter.reset(seed=config.seed, alpha=config.alpha)
    if initial is not None:
        adapter.weights.data.copy_(initial)
    loop = _Loop(model, adapter, config, began)
    reset_seconds = time.perf_counter() - began
    with adapter.silent():  # a prefix, or a warm start, does not begin as the base
        targets = [_taught(model, piece) for piece in pieces]
        before = measure(model, probes)
    best = _Best(adapter, before.get("held_out")) if config.early_stop else None
    total = config.steps or config.epochs * len(pieces)
    lessons = cycle(zip(pieces, targets, strict=True))
    for step, (piece, target) in enumerate(islice(lessons, total), 1):
        if loop.ended(interrupted()):
            break
        loop.step(piece, target)
        if loop.stopped in BROKEN:
            break
        told = {"step": step, "steps": total, "loss": loop.losses[-1]}
        on_step(told | {"tokens": len(piece.ids), "seconds": loop.took})
        if best and step % len(pieces) == 0 and best.worse(measure(model, probes).get("held_out")):
            loop.stopped = "early"
            break
    after = measure(model, probes) if loop.losses and loop.stopped not in BROKEN else {}
    worse = any(_worse(before[name], after[name], config.guard) for name in after)
    stopped: Stopped = "worse" if worse else loop.stopped or "completed"
    return TrainingReport(
        losses=tuple(loop.losses),
        steps=len(loop.losses) - (stopped in ("non_finite", "diverged")),
        tokens=loop.tokens,
        seconds=loop.seconds,
        reset_seconds=reset_seconds,
        stopped=stopped,
        adapter_used=stopped not in (*BROKEN, "cancelled") and len(loop.losses) > 0,
        probes={name: (before[name], after.get(name)) for name in before},
    )


class _Loop:
    """The steps of one training, and what they have come to."""

    def __init__(
        self, model: PreTrainedModel, adapter: Adapter, config: TrainingConfig, began: float
    ) -> None:
        self.model, self.adapter, self.config = model, adapter, config
        self.optimizer = torch.optim.Adam([adapter.weights], lr=config.learning_rate, fused=True)
        self.losses: list[float] = []
        self.tokens, self.seconds, self.took, self.longest = 0, 0.0, 0.0, 0.0
        self.stopped: Stopped | None = None
        self.deadline = began + (config.max_seconds or math.inf)

    def ended(self, reason: Stopped | None) -> bool:
        """Whether no step is to follow: for that reason, or as it would end too late."""
        late = time.perf_counter() + self.longest > self.deadline
        self.stopped = reason or ("time" if late else None)
        return self.stopped is not None

    def step(self, piece: Example, target: Tensor | None) -> None:
        """Loss and update on one example; the update is left out where it would break things."""
        began = time.perf_counter()
        loss = _loss(self.model, piece, target)
        value = loss.item()
        self.losses.append(value)
        self.stopped = self._broken(value, piece, target) or self._update(loss)
        self.took = time.perf_counter() - began
        self.longest = max(self.longest, self.took)
        self.tokens, self.seconds = self.tokens + len(piece.ids), self.seconds + self.took

    def _broken(self, value: float, piece: Example, target: Tensor | None) -> Stopped | None:
        if not math.isfinite(value):
            return "non_finite"
        # The base is asked (one more forward) only where the loss is far above the first.
        # Of a few tokens, or beside a base's own prediction, a nat is nothing out of the way.
        few = piece.teacher is not None or len(piece.ids) - piece.start < _TELLING
        if few or value <= self.losses[0] + _TOLERANCE:
            return None
        with self.adapter.silent():
            base = _loss(self.model, piece, target).item()
        return "diverged" if value > base + _TOLERANCE else None

    def _update(self, loss: Tensor) -> Stopped | None:
        loss.backward()  # type: ignore[no-untyped-call]
        weights = self.adapter.weights
        norm = nn.utils.clip_grad_norm_([weights], self.config.max_grad_norm)
        if not math.isfinite(norm.item()):
            return "non_finite"
        self.optimizer.step()
        self.adapter.clear()
        return None


class _Best:
    """The best of several passes, by how well what was held out is predicted."""

    def __init__(self, adapter: Adapter, loss: float | None) -> None:
        self._weights, self._loss = adapter.weights.data, loss
        self._kept = self._weights.clone()

    def worse(self, loss: float | None) -> bool:
        """Whether this pass is worse than the one before, whose weights are then put back."""
        if self._loss is None or loss is None:
            return False
        if loss > self._loss:
            self._weights.copy_(self._kept)
            return True
        self._loss = loss
        self._kept.copy_(self._weights)
        return False


def checked(
    model: PreTrainedModel,
    adapter: Adapter,
    report: TrainingReport,
    probes: Mapping[str, Sequence[Example]],
    guard: float | None,
) -> TrainingReport:
    """The report of an adapter that was trained before, after a look at other probes.

    Args:
        model: In evaluation mode.
        adapter: Its weights as they were trained; it need not be attached.
        report: Of its training.
        probes: Of this question.
        guard: How much worse they may be with the adapter; see `TrainingConfig`.
    """
    before = measure(model, probes)
    with adapter.attached():
        after = measure(model, probes)
    report = replace(report, probes={name: (before[name], after[name]) for name in before})
    if any(_worse(before[name], after[name], guard) for name in before):
        return replace(report, stopped="worse", adapter_used=False)
    return report


@torch.no_grad()
def measure(model: PreTrainedModel, probes: Mapping[str, Sequence[Example]]) -> dict[str, float]:
    """Nats a token of each probe, as things are."""
    found = {}
    for name, examples in probes.items():
        wanted = [len(example.ids) - example.start for example in examples]
        losses = [_loss(model, example).item() for example in examples]
        nats = sum(loss * n for loss, n in zip(losses, wanted, strict=True))
        found[name] = nats / sum(wanted)
    return found


def _worse(before: float, after: float, guard: float | None) -> bool:
    return guard is not None and not after <= before * (1 + guard)  # a NaN is worse as well


def _loss(model: PreTrainedModel, piece: Example, target: Tensor | None = None) -> Tensor:
    """Nats a predicted token; with a target, Kullback-Leibler's from the base's prediction."""
    ids = torch.tensor([piece.ids], device=model.device)  # (1, T)
    logits = _logits(model, ids, len(piece.ids) - piece.start)  # (T - start, V)
    if target is None:
        nats = F.cross_entropy(logits, ids[0, piece.start :], reduction="none")
    else:
        nats = F.kl_div(logits.log_softmax(-1), target.float(), reduction="none", log_target=True)
        nats = nats.sum(-1)  # (T - start,)
    if piece.weights is None:
        return nats.mean()
    weights = torch.tensor(piece.weights, device=nats.device)
    return (weights * nats).sum() / weights.sum()


@torch.no_grad()
def _taught(model: PreTrainedModel, piece: Example) -> Tensor | None:
    """(T - start, V) log probabilities of what the base predicts after the teacher's tokens."""
    if piece.teacher is None:
        return None
    wanted = piece.ids[piece.start :]
    ids = torch.tensor([[*piece.teacher, *wanted]], device=model.device)
    target = _logits(model, ids, len(wanted)).log_softmax(-1)
    return target.to(model.dtype)  # a large vocabulary's are many


def _logits(model: PreTrainedModel, ids: Tensor, wanted: int) -> Tensor:
    """(wanted, V) float32: what is predicted for the last tokens of (1, T)."""
    keep = {"logits_to_keep": wanted + 1} if keeps_logits(model) else {}
    logits: Tensor = model(input_ids=ids, use_cache=False, **keep).logits
    return logits[0, -wanted - 1 : -1].float()
