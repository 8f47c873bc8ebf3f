"""Test-time training for many tasks at once: what the bundled LM is trained to be good at.

First-order meta-learning (Finn et al. 2017, arXiv 1703.03400, section 5.2): adapt a LoRA to each
task's passages exactly as the library does, ask closed-book at the adapted weights, and move the
*base* weights by that gradient. Every task has its own LoRA factors; a batch of them costs two
batched products a linear layer.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True, slots=True)
class Inner:
    """The inner loop: the settings of test-time training."""

    rank: int = 16
    alpha: float = 32.0
    rate: float = 5e-3
    epochs: int = 3


class TaskAdapters:
    """LoRA factors for `n` tasks on every linear layer of `model` but its head."""

    def __init__(self, model: nn.Module, n: int, inner: Inner) -> None:
        self.n, self.inner = n, inner
        self.layers = [
            module
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and not name.endswith("lm_head")
        ]
        self.factors: list[Tensor] = []  # A (n, in, r), B (n, r, out), A, B, ...
        for layer in self.layers:
            bound = 1 / math.sqrt(layer.in_features)  # peft's Kaiming uniform with a = sqrt(5)
            a = torch.empty(n, layer.in_features, inner.rank).uniform_(-bound, bound)
            self.factors += [a, torch.zeros(n, inner.rank, layer.out_features)]
        for factor in self.factors:
            factor.requires_grad_()
        self.means = [torch.zeros_like(f) for f in self.factors]
        self.squares = [torch.zeros_like(f) for f in self.factors]
        self.steps = 0

    @contextmanager
    def attached(self, tasks: int | None = None, *, frozen: bool = False) -> Iterator[None]:
        """Adds the adapters of the first `tasks` tasks; the batch is task-major."""
        handles: list[RemovableHandle] = []
        for i, layer in enumerate(self.layers):
            a, b = (f[: tasks or self.n] for f in self.factors[2 * i : 2 * i + 2])
            if frozen:
                a, b = a.detach(), b.detach()
            handles.append(layer.register_forward_hook(self._hook(a, b)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, a: Tensor, b: Tensor):  # type: ignore[no-untyped-def]
        scale = self.inner.alpha / self.inner.rank

        def add(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            x = inputs[0].reshape(a.shape[0], -1, a.shape[1])  # (n, rows * T, in)
            return output + scale * (x @ a @ b).reshape(output.shape)

        return add

    def step(self, losses: Tensor) -> None:
        """One Adam step of every task on its own loss; `losses` is (n,); gradients clipped to 1."""
        raw = torch.autograd.grad(losses.sum(), self.factors)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in raw]).norm(dim=0)  # (n,)
        shrink = (1.0 / (norms + 1e-6)).clamp(max=1.0).view(-1, 1, 1)
        grads = [g * shrink for g in raw]
        self.steps += 1
        with torch.no_grad():
            torch._foreach_lerp_(self.means, grads, 0.1)
            torch._foreach_mul_(self.squares, 0.999)
            torch._foreach_addcmul_(self.squares, grads, grads, 0.001)
            denominators = torch._foreach_sqrt(self.squares)
            torch._foreach_div_(denominators, math.sqrt(1 - 0.999**self.steps))
            torch._foreach_add_(denominators, 1e-8)
            rate = self.inner.rate / (1 - 0.9**self.steps)
            torch._foreach_addcdiv_(self.factors, self.means, denominators, -rate)


def padded(rows: Sequence[tuple[list[int], list[float]]]) -> tuple[Tensor, Tensor]:
    """Tokens and weights (B, T), padded at the end with weight 0 (causal: no mask is needed)."""
    width = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([t + [0] * (width - len(t)) for t, _ in rows])
    weights = torch.tensor([w + [0.0] * (width - len(w)) for _, w in rows])
    return tokens, weights


def token_losses(model: nn.Module, tokens: Tensor, weights: Tensor) -> Tensor:
    """Weighted next-token losses, (B, T-1)."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=tokens).logits[:, :-1]
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), tokens[:, 1:].flatten(), reduction="none"
    )
    return losses.view(len(tokens), -1) * weights[:, 1:]


def adapt(model: nn.Module, passages: Sequence[Sequence[list[int]]], inner: Inner) -> TaskAdapters:
    """Test-time training of every task on its own passages; `passages[task][i]` are tokens.

    All tasks have the same number of passages; one passage a step, in order, `epochs` times.
    """
    adapters = TaskAdapters(model, len(passages), inner)
    batches = [
        padded([(task[i], [1.0] * len(task[i])) for task in passages])
        for i in range(len(passages[0]))
    ]
    for tokens, weights in batches * inner.epochs:
        with adapters.attached():
            losses = token_losses(model, tokens, weights)
        adapters.step(losses.sum(1) / weights[:, 1:].sum(1))
    return adapters


def outer_loss(
    model: nn.Module,
    adapters: TaskAdapters,
    asked: Sequence[tuple[list[int], list[float]]],
    tasks: int | None = None,
) -> Tensor:
    """Mean weighted loss of rows, as many for every task, at the adapted weights.

    The adapters are constants here: the gradient is that of the base weights (first order).
    """
    tokens, weights = padded(asked)
    with adapters.attached(tasks, frozen=True):
        losses = token_losses(model, tokens, weights)
    return losses.sum() / weights[:, 1:].sum()
