"""Loading a causal language model from a folder or by name, safely and without long waits.

Only safetensors are read and no code of a model's repository is ever run.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
)
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from transformers.utils import logging as transformers_logging

from sift_rag.checkpoints import check_weights, locate
from sift_rag.quantised import keep_gradients

# Where neither model nor tokenizer names a limit (ALiBi, state spaces): what such models were
# mostly trained with.
_CONTEXT = 2048


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantization_config: Any = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, in evaluation mode.

    Weights may lie in one file or in several parts. A checkpoint that is quantised already says so
    in its config.json, and is loaded by what that names; nothing has to be given for it. Nothing is
    written, beside a name's download.

    Args:
        name_or_path: A folder, or a name on the Hugging Face Hub. A name that was downloaded
            before works offline.
        device: Where the model goes, such as "cpu", "cuda", "cuda:1" or "mps". None takes the
            first CUDA device, or else the CPU. Apple's "mps" has to be asked for: the tests have
            not run there, and it lacks operations that some models need.
        dtype: Such as "bfloat16" or "float16". None takes float32 on the CPU, where 16 bits are
            slow and coarse, and the type that the weights are stored in elsewhere or where they
            are quantised already. Adapters are float32 in any case.
        quantization_config: Of transformers, such as `BitsAndBytesConfig(load_in_4bit=True)`, to
            quantise the weights while they are read, or to say how to read quantised ones. Its
            package has to be installed. Some methods run GPU kernels that the package `kernels`,
            where it is installed, fetches from Hugging Face's own collection.

    Raises:
        FileNotFoundError: If there is no such model, or no way to get it, or a part of its weights
            is missing.
        ImportError: If the package of a quantisation is not installed.
        ValueError: If it is no causal language model, has no weights in safetensors or damaged
            ones, is quantised in an unknown way, or if there is no such device.
    """
    name, target = os.fspath(name_or_path), pick_device(device)
    folder = locate(name_or_path)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_causal(config, name)
    _check_attention(config, name)
    check_weights(folder, name, getattr(config, "transformers_weights", None))
    stored = getattr(config, "quantization_config", None)
    options: dict[str, Any] = {"dtype": dtype or _dtype(target, quantised=stored is not None)}
    if method := _quantisation(quantization_config or stored, name):
        # Straight to its place: many quantised layers can be made there only.
        options["device_map"] = {"": target}
    if quantization_config is not None:
        options["quantization_config"] = quantization_config
    with _quietly(), _explained(name, method):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
            **options,
        )
    if target.type == "cpu":
        logging.getLogger("transformers.integrations.hub_kernels").addFilter(_helps_a_cpu)
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{name!r} is no causal language model: its weights lack "
            f"{', '.join(missing[:3])}. Choose a model that generates text."
        )
    keep_gradients(model)
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    return (model if method else model.to(target)).eval(), tokenizer


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device that is meant, if it is there.

    Raises:
        ValueError: If it is not.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(
            f"There is no device {str(device)!r} here ({reason}): choose one of {_devices()}."
        ) from error
    if target.type == "meta":
        raise ValueError(f"The device 'meta' holds no weights: choose one of {_devices()}.")
    return target


def _devices() -> str:
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ", ".join(["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])])


def _dtype(target: torch.device, *, quantised: bool) -> Any:
    # Quantised weights turn into the type they were made from, which the other weights must have.
    return torch.float32 if target.type == "cpu" and not quantised else "auto"


def _quantisation(config: Any, name: str) -> str:
    """The method of a quantisation, such as "torchao"; empty without one.

    transformers reads a checkpoint of an unknown method as if it were not quantised.
    """
    if config is None:
        return ""
    said: Mapping[str, Any] = (
        config if isinstance(config, Mapping) else getattr(config, "__dict__", {})
    )
    if said.get("load_in_8bit") or said.get("load_in_4bit"):  # all that old checkpoints say
        return "bitsandbytes"
    method = said.get("quant_method")
    method = str(getattr(method, "value", method))
    if method != "bitsandbytes" and method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        known = ", ".join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
        raise ValueError(
            f"{name!r} is quantised by {method!r}, which this transformers does not know: it "
            f"knows {known}."
        )
    return method


@contextmanager
def _explained(name: str, method: str) -> Iterator[None]:
    """Errors of reading the weights that say which model it is."""
    try:
        yield
    except ImportError as error:
        if not method:
            raise
        raise ImportError(
            f"{name!r} with the quantisation {method!r} needs a package that is missing: {error}"
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"{name!r} has a damaged or incomplete file of weights ({error}): fetch it again."
        ) from error


@contextmanager
def _quietly() -> Iterator[None]:
    """No progress bar, and no report on missing weights beside the error that names them."""
    noise: Any = transformers_logging
    level, bar = noise.get_verbosity(), noise.is_progress_bar_enabled()
    noise.set_verbosity(logging.ERROR)
    noise.disable_progress_bar()
    try:
        yield
    finally:
        noise.set_verbosity(level)
        if bar:
            noise.enable_progress_bar()


def _helps_a_cpu(record: logging.LogRecord) -> bool:
    """Not so the advice to install a kernel that only runs on a GPU (LFM2's short convolution)."""
    return "falling back to its reference" not in record.getMessage()


def _check_attention(config: PretrainedConfig, name: str) -> None:
    """A configuration can name a kernel on the Hub, such as "someone/attention": that is code."""
    for part in (config, config.get_text_config()):
        if "/" in (kernel := str(getattr(part, "_attn_implementation", ""))):
            raise ValueError(
                f"{name!r} asks for the attention {kernel!r}, which is code on the Hub: take "
                "attn_implementation out of its config.json."
            )


def check_causal(config: PretrainedConfig, name: object) -> None:
    """Refuse encoders and encoder-decoders, which the auto class would load all the same.

    Raises:
        ValueError: If the configuration is none of a causal language model.
    """
    decoder = not config.is_encoder_decoder and type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    # Encoders such as BERT can be made causal, by a switch in their configuration.
    masked = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", 0)
    if not decoder or masked:
        raise ValueError(
            f"{str(name)!r} is no causal language model but {config.model_type!r}: choose a model "
            "that generates text, such as a Llama, Qwen or GPT-2."
        )


def context_limit(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens that a model can see: the least that its configuration and its tokenizer say.

    YaRN goes beyond `max_position_embeddings` where its factor says so, as in Qwen's recipe. With
    other scalings of positions that number is the limit: transformers' documentation asks to raise
    it along with them.
    """
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or getattr(text, "max_seq_len", None)
    rope = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    if rope.get("rope_type") == "yarn" and rope.get("original_max_position_embeddings"):
        yarn = int(rope["original_max_position_embeddings"] * (rope.get("factor") or 1))
        limit = max(limit or 0, yarn)
    own = tokenizer.model_max_length if tokenizer.model_max_length < 1e9 else None
    return min((each for each in (limit, own) if each), default=_CONTEXT)
