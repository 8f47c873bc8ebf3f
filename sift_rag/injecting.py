"""Layers with an adapter in the place of a model's own: made by peft, then taken out again."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as IA3_LAYERS
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sift_rag.prefixes import seeded

_NAME = "sift_rag"
# Models with layers of Mamba's that peft gives no LoRA (peft.tuners.tuners_utils): one kernel runs
# them all, and reads their weights itself.
_MAMBA = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
_IN_KERNEL = {"conv1d", "out_proj"}

_Swap = tuple[nn.Module, str, str, nn.Module, Any]
"""Parent, the layer's name there, its whole name, the model's own layer, peft's."""


class Injected:
    """The layers of one adapter, which peft makes without weights.

    Attributes:
        config: peft's.
        length: 0: such layers take nothing of the model's context.
        places: Where the adapter's weights lie: modules and the names of their parameters.

    Raises:
        ValueError: If the config names no layer or parameter of the model, or a layer that is not
            linear.
    """

    length = 0

    def __init__(self, model: PreTrainedModel, config: Any) -> None:
        self.config = config
        if hasattr(config, "fan_in_fan_out"):
            config.fan_in_fan_out = any(isinstance(one, Conv1D) for one in model.modules())
        _check_layers(model, config)
        _check_parameters(model, config)
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
            how = self.config.init_lora_weights
            weight.data.copy_(_first(weight, layer.r[_NAME], how, generator))
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
        whole = [name for *_, name, _, layer in self._swaps if not _is_parameter(layer)]
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


def _is_parameter(layer: Any) -> bool:
    """Whether it adapts a parameter of its layer, not all of it: a mixture's experts are one."""
    return hasattr(layer, "parameter_name")


def linear_names(model: PreTrainedModel, kind: str) -> list[str]:
    """The layers that "all-linear" means for a kind of adapter: all but the output layer.

    Routers of a mixture of experts, which give more than numbers, are none of them; nor is what
    peft gives no LoRA, or would take for something else.
    """
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    names = [
        name
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | Conv1D)
        and layer is not head
        and "Router" not in type(layer).__name__
    ]
    if kind != "LORA":
        return names
    if model.config.model_type in _MAMBA:
        names = [name for name in names if _end(name) not in _IN_KERNEL]
    read = _as_read(model, LoraConfig(target_modules="all-linear"))
    return [n for n in names if not read.target_parameters or _end(n) in read.target_modules]


def _as_read(model: PreTrainedModel, config: Any) -> Any:
    """The config as peft takes it for this model.

    Many mixtures keep their experts as parameters since transformers 5. peft takes the names of
    the layers that they were before for these, also where other layers bear the same names.
    """
    read = copy.deepcopy(config)
    with suppress(ImportError):  # it is for transformers 5
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

        convert_peft_config_for_transformers(read, model=model, conversions=None)
    return read


def _check_layers(model: PreTrainedModel, config: Any) -> None:
    """Refuse names of layers that peft takes for parameters, and IA3 where it knows no layers.

    Raises:
        ValueError: If it is so.
    """
    kind = model.config.model_type
    if config.peft_type == "IA3" and not config.target_modules and kind not in IA3_LAYERS:
        raise ValueError(
            f"peft has no choice of layers for IA3 in a {kind!r}: name them, such as "
            'peft={"peft_type": "IA3", "target_modules": ["k_proj", "v_proj", "down_proj"], '
            '"feedforward_modules": ["down_proj"]}.'
        )
    if config.peft_type != "LORA":
        return
    asked = set(config.target_parameters or ())
    if more := sorted(set(_as_read(model, config).target_parameters or ()) - asked):
        raise ValueError(
            f"target_modules names what peft takes for {', '.join(more)} of a {kind!r}: parameters "
            "of all experts together, no layers. Leave it out, or name the parameters: "
            f'peft={{"peft_type": "LORA", "target_parameters": {more}}}.'
        )


def _check_parameters(model: PreTrainedModel, config: Any) -> None:
    """Refuse names of parameters that the model has not.

    Raises:
        ValueError: If there is one.
    """
    names = [name for name, _ in model.named_parameters()]
    for wanted in getattr(config, "target_parameters", None) or ():
        if not any(f".{name}".endswith(f".{wanted}") for name in names):
            raise ValueError(
                f"peft's target_parameters names {wanted!r}, which is no parameter of the model; "
                f"those are named such as {names[len(names) // 2]!r}."
            )


def _inject(model: PreTrainedModel, config: Any) -> list[_Swap]:
    """Have peft make its layers, then take them out again."""
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        with seeded(0, torch.device("cpu")):  # IA3's are drawn, though they are all set to one
            # Without weights, but for layers of 8 bits: peft would leave those without theirs.
            empty = not getattr(model, "is_loaded_in_8bit", False)
            inject_adapter_in_model(config, model, _NAME, low_cpu_mem_usage=empty)
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


def _first(weight: Tensor, rank: int, how: object, generator: torch.Generator) -> Tensor:
    """LoRA's A (rank, inputs), or that of several experts (experts * rank, inputs), as peft's."""
    drawn, inputs = torch.empty(weight.shape), weight.shape[1]
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
