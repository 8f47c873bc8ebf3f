"""peft's settings of an adapter: as plain data, checked, and filled in from ours.

Only the adapter's own weights are ever trained here. So settings which train or change weights of
the base are refused, and so are those whose first step would not begin at the base.
"""

import dataclasses
from collections.abc import Mapping
from enum import Enum
from typing import Any

from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, PrefixTuningConfig

_PLACES = {"target_modules", "exclude_modules"}
_LAYERS = _PLACES | {"r", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"}
_LORA = {"lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights"}
_LORA |= {"target_parameters"}
_KINDS: dict[str, tuple[type[PeftConfig], set[str]]] = {
    "LORA": (LoraConfig, _LAYERS | _LORA),
    "IA3": (IA3Config, _PLACES | {"feedforward_modules"}),
    "LOHA": (LoHaConfig, _LAYERS | {"alpha"}),
    "LOKR": (LoKrConfig, _LAYERS | {"alpha", "decompose_both", "decompose_factor"}),
    "PREFIX_TUNING": (
        PrefixTuningConfig,
        {"num_virtual_tokens", "prefix_projection", "encoder_hidden_size", "init_weights"},
    ),
}
# What peft notes in a saved config, and what follows from the model.
_ASIDE = {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path"}
_ASIDE |= {"revision", "inference_mode", "runtime_config", "fan_in_fan_out", "token_dim"}
_ASIDE |= {"num_attention_heads", "num_layers", "num_transformer_submodules"}
_KEPT = {"r", "lora_alpha", "alpha"}  # said with peft's default too: ours is another
_FIRST: dict[str, tuple[Any, ...]] = {
    "init_lora_weights": (True, "gaussian"),
    "init_weights": (None, "zero"),  # of a prefix; the other kinds have nothing to choose
}


def peft_settings(peft: PeftConfig | Mapping[str, Any]) -> dict[str, Any]:
    """What a peft config sets, as plain data that JSON can hold.

    A config object says everything: its rank and alpha too, where they are peft's own defaults.
    What a mapping leaves out is `TrainingConfig`'s to say: see `peft_config`.

    Args:
        peft: A config of kind LORA (with rsLoRA and DoRA), IA3, LOHA, LOKR or PREFIX_TUNING, or
            its fields as a mapping with "peft_type", such as a saved adapter_config.json.

    Raises:
        TypeError: It is neither.
        ValueError: It is of another kind, not for causal language models, or sets something that
            is not taken, such as modules_to_save.
    """
    if isinstance(peft, PeftConfig):
        said = {field.name: getattr(peft, field.name) for field in dataclasses.fields(peft)}
    elif isinstance(peft, Mapping):
        said = dict(peft)
    else:
        raise TypeError(
            f"peft is {peft!r}; it must be a config of peft, such as peft.LoraConfig(r=8), or a "
            'mapping of its fields, such as {"peft_type": "LORA", "use_dora": True}.'
        )
    kind = _plain(said.get("peft_type"))
    if kind not in _KINDS:
        raise ValueError(f"peft_type is {kind!r}; taken are {', '.join(_KINDS)}.")
    if (task := _plain(said.get("task_type"))) not in (None, "CAUSAL_LM"):
        raise ValueError(f"peft's task_type is {task!r}; taken are 'CAUSAL_LM' and None.")
    given = _given(kind, said)
    _KINDS[kind][0](**_typed(given))  # peft's own checks, now and not at the first question
    return {"peft_type": kind} | given


def peft_config(
    settings: Mapping[str, Any], *, rank: int, target_modules: str | tuple[str, ...]
) -> Any:
    """The config object of `peft_settings`, with what they leave open filled in.

    Rank and layers are `rank` and `target_modules` where the settings name none; alpha, which is
    only known at each reset, is NaN then. IA3 takes peft's own choice of layers for the
    architecture, unless some are named. Dropout stays off, as the base's own does.
    """
    settings = dict(settings)
    kind = settings.pop("peft_type")
    if kind in ("LORA", "LOHA", "LOKR"):
        alpha = alpha_name(kind)
        settings = {"r": rank, "target_modules": target_modules, alpha: float("nan")} | settings
    elif kind == "IA3" and target_modules != "all-linear":
        settings = {"target_modules": target_modules} | settings
    if kind == "LORA":
        settings["lora_dropout"] = 0.0
    return _KINDS[kind][0](task_type="CAUSAL_LM", **_typed(settings))


def alpha_name(kind: str) -> str:
    """What peft calls alpha in a config of this kind."""
    return "lora_alpha" if kind == "LORA" else "alpha"


def _given(kind: str, said: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that count, without those that only repeat a default."""
    config, taken = _KINDS[kind]
    defaults = {field.name: _default(field) for field in dataclasses.fields(config)}
    given = {}
    for name, value in said.items():
        if name in _ASIDE or value is None or _repeats(name, value, defaults, taken):
            continue
        if name not in (known := taken & set(defaults)):
            raise ValueError(
                f"peft sets {name}={value!r}, which is not taken with {kind}: only the adapter's "
                f"own weights are trained here. Taken are {', '.join(sorted(known))}."
            )
        if name in _FIRST and value not in _FIRST[name]:
            one, other = _FIRST[name]
            raise ValueError(
                f"peft's {name} is {value!r}; taken are {one!r} and {other!r}: others change the "
                "base, or do not begin at it."
            )
        given[name] = _plain(value)
    return given


def _repeats(name: str, value: object, defaults: Mapping[str, object], taken: set[str]) -> bool:
    """Whether it says no more than peft's default, or is off in another version of peft."""
    if name in taken:
        return name not in _KEPT and value == defaults.get(name)
    return value in (defaults[name], [], {}) if name in defaults else not value


def _default(field: "dataclasses.Field[Any]") -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(value)
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def _typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As peft wants it: names as a list."""
    return {n: list(v) if isinstance(v, tuple) else v for n, v in settings.items()}
