"""Adapters of any kind that peft knows: made once, reset in place, in the model while attached.

All weights of an adapter live in one flat buffer, so that a reset is one copy and Adam one fused
update. While an adapter is not attached the model holds its own layers, untouched: the base costs
nothing extra, and nothing can leak into it.
"""

import json
import math
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import PeftConfig
from torch import Tensor, nn
from transformers import PreTrainedModel

from sift_rag.exporting import write_peft
from sift_rag.injecting import Injected, linear_names
from sift_rag.peft_settings import alpha_name, peft_config, peft_settings
from sift_rag.prefixes import Prefix
from sift_rag.quantised import check_gradients, check_kind

_KEPT = 4  # adapters: most programs use one, a comparison a few

Peft = PeftConfig | Mapping[str, Any] | None
"""An adapter as peft describes it: see `sift_rag.peft_settings`."""


class Adapter:
    """An adapter's weights for one model: made once, reset in place, in it only while attached.

    The weights are float32 whatever the model's type, as views into one flat parameter.

    Attributes:
        weights: All the adapter's weights, flat, with their gradient as `weights.grad`.
        length: Tokens of the model's context that the adapter takes: none but for a prefix.

    Raises:
        ValueError: If the settings name no layer or parameter of the model, or a layer that is not
            linear, or the model lies on several devices or is quantised in a way that stops
            gradients or that this kind of adapter cannot work on; or see `peft_settings`.
    """

    weights: nn.Parameter

    def __init__(
        self,
        model: PreTrainedModel,
        rank: int,
        target_modules: str | tuple[str, ...],
        peft: Peft = None,
    ):
        self._seed: int | None = None
        self._alpha: float | None = None
        self._attached = False
        self._base = list(model.parameters())
        if len(devices := {str(weight.device) for weight in self._base}) > 1:
            raise ValueError(
                f"The model lies on several devices ({', '.join(sorted(devices))}); to train it, "
                "put it on one: model.to(device)."
            )
        check_gradients(model)
        settings = peft_settings({"peft_type": "LORA"} if peft is None else peft)
        check_kind(model, settings)
        settings = _named(model, settings, target_modules)
        config = peft_config(settings, rank=rank, target_modules=target_modules)
        kind = Prefix if settings["peft_type"] == "PREFIX_TUNING" else Injected
        self._inside: Injected | Prefix = kind(model, config)
        self.length = self._inside.length
        self._flatten()

    def _flatten(self) -> None:
        """Put all weights into one buffer, and their gradients into another."""
        places = self._inside.places
        shapes: list[torch.Size] = [getattr(module, name).shape for module, name in places]
        flat = torch.zeros(sum(map(math.prod, shapes)), device=self._base[0].device)
        self._initial, self._gradient = torch.zeros_like(flat), torch.zeros_like(flat)
        start = 0
        for (module, name), shape in zip(places, shapes, strict=True):
            part = slice(start, start := start + shape.numel())
            weight = nn.Parameter(flat[part].view(shape))
            weight.grad = self._gradient[part].view(shape)
            setattr(module, name, weight)
        self.weights = nn.Parameter(flat)
        self.weights.grad = self._gradient

    def reset(self, *, seed: int, alpha: float) -> None:
        """Make the adapter what it was at first: for LoRA A drawn by the seed, B zero.

        Args:
            seed: Of what is drawn. The process's own random state is not touched.
            alpha: The output is scaled by alpha / rank, or as the settings of peft say.
        """
        if seed != self._seed:
            self.weights.data.zero_()
            self._inside.draw(seed)
            self._initial.copy_(self.weights.data)
            self._seed = seed
        else:
            self.weights.data.copy_(self._initial)
        self.clear()
        self._inside.scale(alpha)
        self._alpha = alpha

    def clear(self) -> None:
        """Set the gradient to zero, in place: the layers' gradients are views of it."""
        self._gradient.zero_()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """The base for a while, though the adapter is attached; nothing is learnt meanwhile."""
        inside = self._attached
        if inside:
            self._inside.take_out()
        try:
            with torch.no_grad():
                yield
        finally:
            if inside:
                self._inside.put_in()

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Put the adapter into the model, whose own weights are frozen meanwhile."""
        trainable = [weight for weight in self._base if weight.requires_grad]
        try:
            for weight in trainable:
                weight.requires_grad_(False)
            self._inside.put_in()
            self._attached = True
            yield
        finally:
            self._attached = False
            self._inside.take_out()
            for weight in trainable:
                weight.requires_grad_(True)

    def export(
        self,
        folder: str | os.PathLike[str],
        base_name: str,
        *,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    ) -> None:
        """Write the weights as they are as an ordinary PEFT folder.

        `peft.PeftModel.from_pretrained(base, folder)` loads it, whatever its kind. vLLM and SGLang
        load LoRA and rsLoRA (`--enable-lora`; vLLM's `--max-lora-rank` must be at least the rank)
        of layers that they know; not DoRA, IA3, LoHa, LoKr, a prefix, target_parameters or
        lora_bias, and vLLM no rank_pattern or alpha_pattern.

        Args:
            folder: A new path, an empty folder, or one that an adapter was exported to before:
                that one is replaced. Written beside it and moved there whole.
            base_name: What the base is called: its folder, or its name on the Hugging Face Hub.
            dtype: Of the weights in the file.

        Raises:
            FileExistsError: The folder holds something else.
            ValueError: The adapter was never reset, so it has no weights yet; or an unknown dtype.
        """
        if self._alpha is None:
            raise ValueError("The adapter has no weights yet: reset and train it, then export it.")
        types = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
        if dtype not in types:
            raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(types)}.")
        weights: dict[str, Tensor] = {
            name: weight.detach().to("cpu", types[dtype]).clone().contiguous()
            for name, weight in self._inside.named().items()
        }
        write_peft(folder, self._config(base_name), weights)

    def _config(self, base_name: str) -> dict[str, Any]:
        """peft's config as it is saved: the alpha of the last reset, layers by name."""
        config = self._inside.config.to_dict()
        name = alpha_name(config["peft_type"])
        if isinstance(alpha := config.get(name), float) and math.isnan(alpha):
            alpha = self._alpha or 0.0
            config[name] = int(alpha) if alpha == int(alpha) else alpha
        config |= self._inside.saved()
        config |= {"base_model_name_or_path": base_name, "inference_mode": True}
        return {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}


def _named(
    model: PreTrainedModel, settings: dict[str, Any], target_modules: str | tuple[str, ...]
) -> dict[str, Any]:
    """The settings with the names of the layers in the place of "all-linear"."""
    kind = settings["peft_type"]
    wanted = settings.get("target_modules", target_modules)
    if kind not in ("LORA", "LOHA", "LOKR") or str(wanted).lower() != "all-linear":
        return settings
    names = linear_names(model, kind)
    if "layers_to_transform" in settings:  # peft takes a whole name whatever its layer
        names = sorted({name.rpartition(".")[2] for name in names})
    return settings | {"target_modules": names}


class Adapters:
    """The adapters of one model, made when they are first asked for; the last few are kept."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._made: OrderedDict[str, Adapter] = OrderedDict()

    def get(self, rank: int, target_modules: str | tuple[str, ...], peft: Peft = None) -> Adapter:
        """The adapter of this shape; what `peft` leaves open is as rank and targets say."""
        settings = None if peft is None else peft_settings(peft)
        shape = json.dumps([rank, target_modules, settings], sort_keys=True)
        if shape not in self._made:
            self._made[shape] = Adapter(self._model, rank, target_modules, settings)
        self._made.move_to_end(shape)
        while len(self._made) > _KEPT:
            self._made.popitem(last=False)
        return self._made[shape]
