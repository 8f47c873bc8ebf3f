"""Whether an adapter can learn on quantised layers: some were made for inference alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

_QUICKER = "support_avx512bf16_for_cpu"


def check_gradients(model: nn.Module) -> None:
    """Refuse a model whose quantised layers let no gradient through.

    The layers before such a one would not learn, and no error would say so: the loss still falls,
    by what the last layers learn. One layer of each kind is tried.

    Raises:
        ValueError: If there is such a layer.
    """
    tried = set()
    dtype = getattr(model, "dtype", torch.float32)
    for name, layer in model.named_modules():
        weight = getattr(layer, "weight", None)
        kind = (type(layer), type(weight))
        if kind in tried or kind == (nn.Linear, nn.Parameter) or not hasattr(layer, "in_features"):
            continue
        tried.add(kind)
        if not _passes(layer, dtype):
            raise ValueError(
                f"No gradient passes through the quantised layer {name!r} ({kind[0].__name__}, "
                f"{kind[1].__name__}), so the model cannot be trained on: quantise it with a "
                'method for its weights only, such as 8 bits, or use mode="stuff".'
            )


def check_kind(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Refuse kinds of adapters that would fail on layers of bitsandbytes, or break them.

    Args:
        model: Whose layers they are.
        settings: Of peft; see `peft_settings`.

    Raises:
        ValueError: If the kind is such a one.
    """
    kind, bits = settings["peft_type"], 0
    if kind in ("LOHA", "LOKR") and getattr(model, "is_loaded_in_4bit", False):
        bits = 4
    on_cpu = next((weight.is_cpu for weight in model.parameters()), True)
    if settings.get("use_dora") and on_cpu and getattr(model, "is_loaded_in_8bit", False):
        kind, bits = "DoRA", 8
    if bits:
        raise ValueError(
            f"peft cannot use {kind} on layers of {bits} bits{' on the CPU' * (bits == 8)}: take a "
            f"plain LoRA or IA3, or load the model in {12 - bits} bits."
        )


def keep_gradients(model: nn.Module) -> None:
    """Have bitsandbytes keep 4-bit layers as they are on a CPU.

    Some CPUs have a quicker form, into which the first inference turns a layer for good: no
    gradient passes through it.
    """
    for layer in model.modules():
        if hasattr(layer, _QUICKER):
            setattr(layer, _QUICKER, False)


def _passes(layer: nn.Module, dtype: torch.dtype) -> bool:
    weights = [*layer.parameters(), *layer.buffers()]
    device = weights[0].device if weights else None
    size: Any = layer.in_features
    given = torch.ones(1, 2, size, device=device, dtype=dtype)
    try:
        with torch.no_grad():
            layer(given)  # some layers change at the first inference
        with torch.enable_grad():
            made = layer(given.requires_grad_(True))
            if not isinstance(made, torch.Tensor):  # a mixture's router, which is no layer to adapt
                return True
            if not made.requires_grad:
                return False
            (gradient,) = torch.autograd.grad(made.float().sum(), given, allow_unused=True)
    except (TypeError, RuntimeError):  # it wants something else, which only the model can give
        return True
    return gradient is not None and bool(gradient.any())
