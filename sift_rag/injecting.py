"""Layers with an adapter in the place of a model's own: made by peft, then taken out again."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sift_rag.prefixes import seeded

_NAME = "sift_rag"

_Swap = tuple[nn.Module, str, str, nn.Module, Any]
"""Parent, the layer's name there, its whole name, the model's own layer, peft's."""


class Injected:
    """The layers of one adapter, which peft makes without weights.

    Attributes:
        config: peft's.
        length: 0: such layers take nothing of the model's context.
        places: Where the adapter's weights lie: modules and the names of their parameters.

    Raises:
        ValueError: If the config names no layer of the model, or one that is not linear.
    """

    length = 0

    def __init__(self, model: PreTrainedModel, config: Any) -> None:
        self.config = config
        if hasattr(config, "fan_in_fan_out"):
            config.fan_in_fan_out = any(isinstance(one, Conv1D) for one in model.modules())
        self._all = [name for name, _ in model.named_modules()]
        self._swaps = _inject(model, config)
        self._places = dict(_places(self._swaps))
        self.places = list(self._places.values())
        self._open = list(self._unscaled())

    def _unscaled(self) -> Iterator[tuple[Any, float]]:
        """The layers whose alpha is not said, and what it is divided by."""
        for *_, layer in self._swaps:
            scaling = getattr(layer, "scaling", {}).get(_NAME)
            if scaling is not None and scaling != scaling:  # NaN, from `peft_config`
                rank = layer.r[_NAME]
                yield layer, rank**0.5 if getattr(self.config, "use_rslora", False) else rank

    def draw(self, seed: int) -> None:
        """Fill the weights, which are zero, with the first ones of that seed."""
        if self.config.peft_type != "LORA":
            module, name = self.places[0]
            with seeded(seed, getattr(module, name).device):
                for *_, layer in self._swaps:
                    reset = getattr(layer, "reset_ia3_parameters", None)
                    (reset or layer.reset_adapter_parameters)(_NAME)
            return
        generator = torch.Generator().manual_seed(seed)
        for _, _, _, own, layer in self._swaps:
            weight = layer.lora_A[_NAME].weight  # B and its bias stay zero
            weight.data.copy_(_first(weight, self.config.init_lora_weights, generator))
            if _NAME in layer.lora_magnitude_vector:
                layer.lora_magnitude_vector[_NAME].weight.data.copy_(_magnitude(own, layer))

    def scale(self, alpha: float) -> None:
        """Set the alpha of the layers for which the settings of peft say none."""
        for layer, divisor in self._open:
            layer.scaling[_NAME] = alpha / divisor

    def put_in(self) -> None:
        """Put the adapter's layers into the model."""
        for parent, name, _, _, layer in self._swaps:
            setattr(parent, name, layer)

    def take_out(self) -> None:
        """Put the model's own layers back."""
        for parent, name, _, own, _ in self._swaps:
            setattr(parent, name, own)

    def named(self) -> dict[str, Tensor]:
        """The weights under the names that peft gives them."""
        return {key: getattr(module, name) for key, (module, name) in self._places.items()}

    def saved(self) -> dict[str, Any]:
        """What a saved config says of the layers: a list of their names, in place of any pattern.

        They are given by the ends of their names, which is what vLLM and SGLang know layers by;
        in full only where other layers, which are not meant, end so too.
        """
        whole = [name for _, _, name, _, _ in self._swaps]
        inputs = [name for _, _, name, _, layer in self._swaps if _scales_inputs(layer)]
        short = all(_told_apart(some, self._all) for some in (whole, inputs))
        names = {"target_modules": whole, "feedforward_modules": inputs}
        known = self.config.to_dict().keys()
        patterns = {"exclude_modules", "layers_to_transform", "layers_pattern"} & known
        return dict.fromkeys(patterns) | {
            key: sorted(set(map(_end, some))) if short else some
            for key, some in names.items()
            if key in known
        }


def _end(name: str) -> str:
    return name.rpartition(".")[2]


def _told_apart(some: Sequence[str], names: Sequence[str]) -> bool:
    """Whether no other of the names ends as one of these does."""
    ends = set(map(_end, some))
    return {name for name in names if _end(name) in ends} == set(some)


def _scales_inputs(layer: Any) -> bool:
    """Whether it is one of IA3's that scale what goes in, not what comes out."""
    return bool(getattr(layer, "is_feedforward", False))


def linear_names(model: PreTrainedModel) -> tuple[str, ...]:
    """The ends of the names of all linear layers but the output layer."""
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    return tuple(
        sorted(
            {
                _end(name)
                for name, layer in model.named_modules()
                if isinstance(layer, nn.Linear | Conv1D) and layer is not head
            }
        )
    )


def _inject(model: PreTrainedModel, config: Any) -> list[_Swap]:
    """Have peft make its layers, then take them out again."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        with seeded(0, torch.device("cpu")):  # IA3's are drawn, though they are all set to one
            inject_adapter_in_model(config, model, _NAME, low_cpu_mem_usage=True)
    finally:
        model.__dict__.pop("peft_config", None)
        swaps: list[_Swap] = [
            (parent, name, f"{path}.{name}".lstrip("."), layer.get_base_layer(), layer)
            for path, parent in model.named_modules()
            for name, layer in parent.named_children()
            if isinstance(layer, BaseTunerLayer)
        ]
        for parent, name, _, own, _ in swaps:
            setattr(parent, name, own)
        for weight in trainable:
            weight.requires_grad_(True)
    for _, name, _, own, _ in swaps:
        if isinstance(own, nn.Embedding | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            raise ValueError(f"target_modules names {name!r}, which is no linear layer.")
    return swaps


def _places(swaps: Sequence[_Swap]) -> Iterator[tuple[str, tuple[nn.Module, str]]]:
    """Where the weights of each layer lie, by the names that peft saves them under."""
    for _, _, whole, _, layer in swaps:
        for path, module in layer.named_modules():
            if path.split(".")[0] == "base_layer":
                continue
            for name, weight in module._parameters.items():
                if weight is not None and weight.requires_grad:
                    key = f"base_model.model.{whole}.{path}.{name}".replace(f".{_NAME}", "")
                    # DoRA's had no ".weight" when peft settled how adapters are saved.
                    yield key.replace("magnitude_vector.weight", "magnitude_vector"), (module, name)


def _first(weight: Tensor, how: object, generator: torch.Generator) -> Tensor:
    """LoRA's A (rank, inputs), as peft draws it."""
    rank, inputs = weight.shape
    drawn = torch.empty(rank, inputs)
    if how == "gaussian":
        return drawn.normal_(0, 1 / rank, generator=generator)
    bound = inputs**-0.5  # nn.Linear's and peft's: Kaiming uniform with a = sqrt 5
    return drawn.uniform_(-bound, bound, generator=generator)


def _magnitude(own: nn.Module, layer: Any) -> Tensor:
    """(outputs,) lengths of the weights of each output: with them DoRA begins at the base.

    In float32 also where the base is not: peft rounds them to the base's type, and then it begins
    beside the base.
    """
    weight: Tensor = dequantize_module_weight(own).detach().float()
    lengths: Tensor = torch.linalg.norm(weight.T if layer.fan_in_fan_out else weight, dim=1)
    return lengths
