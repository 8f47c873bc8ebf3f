"""LoRA adapters: made once by peft, reset in place, in the model only while attached.

All weights of an adapter live in one flat buffer, so that a reset is one copy and Adam one fused
update. While an adapter is not attached the model holds its own layers, untouched: the base costs
nothing extra, and nothing can leak into it.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_NAME = "sift_rag"
_KEPT = 4  # adapters: most programs use one, a comparison a few

_Swap = tuple[nn.Module, str, nn.Module, Any]  # parent, name, the model's own layer, LoRA layer


class Adapter:
    """LoRA weights for one model: made once, reset in place, in the model only while attached.

    The weights are float32 whatever the model's type, as views into one flat parameter.

    Attributes:
        weights: All the adapter's weights, flat, with their gradient as `weights.grad`.

    Raises:
        ValueError: If `target_modules` names no layer of the model, or one that is not linear, or
            the model lies on several devices.
    """

    weights: nn.Parameter

    def __init__(self, model: PreTrainedModel, rank: int, target_modules: str | tuple[str, ...]):
        self._rank = rank
        self._seed: int | None = None
        self._base = list(model.parameters())
        if len(devices := {str(weight.device) for weight in self._base}) > 1:
            raise ValueError(
                f"The model lies on several devices ({', '.join(sorted(devices))}); to train it, "
                "put it on one: model.to(device)."
            )
        self._layers = _inject(model, rank, target_modules)
        factors = [
            (linear, name == "lora_A")
            for *_, layer in self._layers
            for name in ("lora_A", "lora_B")
            for linear in [getattr(layer, name)[_NAME]]
        ]
        size = sum(linear.weight.numel() for linear, _ in factors)
        flat = torch.zeros(size, device=self._base[0].device)
        self._initial = torch.zeros_like(flat)
        self._gradient = torch.zeros_like(flat)
        self._drawn: list[tuple[Tensor, int]] = []  # (each A in _initial, its inputs)
        start = 0
        for linear, is_a in factors:
            rows, columns = linear.weight.shape
            part = slice(start, start := start + rows * columns)
            linear.weight = nn.Parameter(flat[part].view(rows, columns))
            linear.weight.grad = self._gradient[part].view(rows, columns)
            if is_a:
                self._drawn.append((self._initial[part], columns))
        self.weights = nn.Parameter(flat)
        self.weights.grad = self._gradient

    def reset(self, *, seed: int, alpha: float) -> None:
        """Make the adapter what it was at first: A drawn by the seed, B zero."""
        if seed != self._seed:
            generator = torch.Generator().manual_seed(seed)
            for part, fan_in in self._drawn:
                bound = fan_in**-0.5  # nn.Linear's and peft's: Kaiming uniform with a = sqrt 5
                part.copy_(torch.empty(len(part)).uniform_(-bound, bound, generator=generator))
            self._seed = seed
        self.weights.data.copy_(self._initial)
        self.clear()
        for *_, layer in self._layers:
            layer.scaling[_NAME] = alpha / self._rank

    def clear(self) -> None:
        """Set the gradient to zero, in place: the layers' gradients are views of it."""
        self._gradient.zero_()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put the adapter into the model, whose own weights are frozen meanwhile."""
        trainable = [weight for weight in self._base if weight.requires_grad]
        try:
            for weight in trainable:
                weight.requires_grad_(False)
            for parent, name, _, layer in self._layers:
                setattr(parent, name, layer)
            yield
        finally:
            for parent, name, own, _ in self._layers:
                setattr(parent, name, own)
            for weight in trainable:
                weight.requires_grad_(True)


class Adapters:
    """The adapters of one model, made when they are first asked for; the last few are kept."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._made: OrderedDict[tuple[int, str | tuple[str, ...]], Adapter] = OrderedDict()

    def get(self, rank: int, target_modules: str | tuple[str, ...]) -> Adapter:
        """The adapter of this shape."""
        shape = (rank, target_modules)
        if shape not in self._made:
            self._made[shape] = Adapter(self._model, *shape)
        self._made.move_to_end(shape)
        while len(self._made) > _KEPT:
            self._made.popitem(last=False)
        return self._made[shape]


def _inject(
    model: PreTrainedModel, rank: int, target_modules: str | tuple[str, ...]
) -> list[_Swap]:
    """Have peft make its layers: (parent, name, the model's own layer, LoRA layer), then take them
    out again. They are made without weights, so no random number is drawn."""
    targets = target_modules if isinstance(target_modules, str) else list(target_modules)
    config = LoraConfig(
        r=rank,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        inject_adapter_in_model(config, model, _NAME, low_cpu_mem_usage=True)
    finally:
        model.__dict__.pop("peft_config", None)
        layers: list[_Swap] = [
            (parent, name, layer.get_base_layer(), layer)
            for parent in model.modules()
            for name, layer in parent.named_children()
            if isinstance(layer, LoraLayer)
        ]
        for parent, name, own, _ in layers:
            setattr(parent, name, own)
        for weight in trainable:
            weight.requires_grad_(True)
    if other := [name for _, name, _, layer in layers if _NAME not in layer.lora_A]:
        raise ValueError(f"target_modules names {other[0]!r}, which is no linear layer.")
    return layers
