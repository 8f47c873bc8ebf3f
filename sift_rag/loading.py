"""Loading a causal language model from a folder or by name, safely and without long waits.

Only safetensors are read and no code of a model's repository is ever run.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
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
from transformers.utils import logging as transformers_logging

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def load(
    name_or_path: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, in evaluation mode.

    Args:
        name_or_path: A folder, or a name on the Hugging Face Hub. A name that was downloaded
            before works offline.
        device: Where the model goes. None takes the first CUDA device, or else the CPU.
        dtype: Such as "bfloat16". None takes float32 on the CPU, where 16 bits are slow and
            coarse, and the type that the weights are stored in elsewhere.

    Raises:
        FileNotFoundError: If there is no such model, or no way to get it.
        ValueError: If it is no causal language model, or has no weights in safetensors.
    """
    folder = _folder(name_or_path)
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    check_causal(config, name_or_path)
    if not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{os.fspath(name_or_path)!r} has no weights in safetensors, and other formats can run "
            "code when they are read: convert it with model.save_pretrained(folder)."
        )
    with _quietly():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or (torch.float32 if target.type == "cpu" else "auto"),
            local_files_only=True,
            output_loading_info=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
    if target.type == "cpu":
        logging.getLogger("transformers.integrations.hub_kernels").addFilter(_helps_a_cpu)
    model, loading = loaded
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{os.fspath(name_or_path)!r} is no causal language model: its weights lack "
            f"{', '.join(missing[:3])}. Choose a model that generates text."
        )
    tokenizer = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    model.to(target).eval()
    return model, tokenizer


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


def _folder(name_or_path: str | os.PathLike[str]) -> Path:
    name = os.fspath(name_or_path)
    if (folder := Path(name)).is_dir():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"The folder {name!r} holds no model: it has no config.json.")
        return folder
    try:
        # Fails at once where there is no network, instead of trying again for half a minute.
        return Path(snapshot_download(name, allow_patterns=_FILES, ignore_patterns="*/*"))
    except (OSError, HFValidationError, HfHubHTTPError) as error:
        raise FileNotFoundError(
            f"There is no model {name!r}: it is no folder here, was not downloaded before, and "
            f"could not be downloaded ({type(error).__name__}). Give the path of a folder with "
            "config.json, model.safetensors and the tokenizer's files."
        ) from error


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
