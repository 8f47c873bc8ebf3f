"""A model's folder: where it is, and whether its weights are all there and safe to read."""

import json
import os
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def locate(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a model: itself, or where a name on the Hugging Face Hub was downloaded to.

    Raises:
        FileNotFoundError: If there is no such model, or no way to get it.
    """
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


def check_weights(folder: Path, name: str, named: str | None = None) -> None:
    """Refuse weights that are no safetensors, that are not all there, or an adapter over them.

    Args:
        folder: Of the model.
        name: What to call it.
        named: The file of the weights, where the configuration names another than usual.

    Raises:
        FileNotFoundError: If a part of the weights is missing.
        ValueError: If there are none in safetensors, or the index of the parts is damaged; or if
            there is an adapter beside them, which transformers would put into the model.
    """
    if (folder / "adapter_config.json").is_file():
        raise ValueError(
            f"{name!r} holds a PEFT adapter (adapter_config.json) over the model: merge it with "
            "peft's merge_and_unload() and save the result, or take the adapter's files out."
        )
    wanted = (named,) if named else _WEIGHTS
    first = next((file for file in wanted if (folder / file).is_file()), None)
    parts = _parts(folder / first, name) if first and first.endswith(".json") else [first]
    for part in parts:
        if part is None or not part.endswith(".safetensors") or Path(part).name != part:
            raise ValueError(
                f"{name!r} has no weights in safetensors{f' but {part!r}' if part else ''}, and "
                "other formats can run code when they are read: convert it with "
                "model.save_pretrained(folder)."
            )
        if not (folder / part).is_file():
            raise FileNotFoundError(
                f"{name!r} lacks {part}, one of {len(parts)} parts of its weights that {first} "
                "names: fetch it again."
            )


def _parts(index: Path, name: str) -> list[str]:
    try:
        files: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return sorted({str(file) for file in files})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{name!r} has a damaged {index.name} ({type(error).__name__}): fetch it again."
        ) from error
