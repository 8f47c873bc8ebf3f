"""Loading a model: what is refused, how it says so, and that nothing is printed."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build, byte_tokenizer
from transformers import BertConfig, LlamaConfig, LlamaModel, MambaConfig, MptConfig, T5Config

from sift_rag.generation import LanguageModel
from sift_rag.loading import check_causal, context_limit, load, pick_device


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved Llama."""
    build().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_a_saved_model_comes_back_silently(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = load(folder)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, build()(input_ids=ids).logits)
    assert not model.training
    assert tokenizer("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")


def test_the_type_is_float32_on_a_cpu_unless_told(folder: Path) -> None:
    build().to(torch.bfloat16).save_pretrained(folder)
    assert load(str(folder), device="cpu")[0].dtype == torch.float32
    assert load(folder, dtype="bfloat16")[0].dtype == torch.bfloat16
    assert load(folder, dtype=torch.float16)[0].dtype == torch.float16


@pytest.mark.parametrize("config", [T5Config(), BertConfig()], ids=["t5", "bert"])
def test_a_model_that_is_no_causal_one_is_refused_before_its_weights_are_read(
    tmp_path: Path, config: Any
) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"no causal language model but '{config.model_type}'"):
        load(tmp_path)


def test_an_encoder_that_was_made_causal_is_one() -> None:
    with pytest.raises(ValueError, match="no causal language model"):
        check_causal(BertConfig(), "mine")
    check_causal(BertConfig(is_decoder=True), "mine")  # the switch alone makes the difference


def test_a_model_without_a_head_is_refused(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    headless: Any = LlamaModel
    headless(LlamaConfig(**build().config.to_dict())).save_pretrained(folder)
    level = logging.getLogger("transformers").level
    capfd.readouterr()
    with pytest.raises(ValueError, match=r"no causal language model: its weights lack lm_head"):
        load(folder)
    assert capfd.readouterr().err == ""
    assert logging.getLogger("transformers").level == level


def test_weights_that_can_run_code_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no weights in safetensors"):
        load(folder)


def test_code_of_a_repository_is_not_run(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config["model_type"] = "unheard-of"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('this ran')")
    with pytest.raises(ValueError, match=r"unheard-of|custom code"):
        load(folder)


def test_a_folder_without_a_model_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no model: it has no config\.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    "name", ["sift-rag-tests/no-such-model", "./no/such/folder", "/no/such/folder", "no such name"]
)
def test_a_missing_model_says_soon_how_to_give_a_path(name: str) -> None:
    began = time.perf_counter()
    with pytest.raises(FileNotFoundError, match=r"There is no model .*Give the path of a folder"):
        load(name)
    assert time.perf_counter() - began < 15


def change(file: Path, **values: Any) -> None:
    """Set values in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture
def parts(folder: Path) -> Path:
    """The saved Llama in several files."""
    (folder / "model.safetensors").unlink()
    build().save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


def test_weights_in_several_parts_are_one_model(parts: Path) -> None:
    loaded = load(parts)[0].state_dict()
    assert all(torch.equal(loaded[name], weight) for name, weight in build().state_dict().items())


def test_a_missing_part_is_named(parts: Path) -> None:
    gone = min(parts.glob("*.safetensors"))
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks {gone.name}"):
        load(parts)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../model.safetensors", "/x.safetensors"])
def test_an_index_leads_to_safetensors_in_the_folder_only(parts: Path, name: str) -> None:
    index = parts / "model.safetensors.index.json"
    change(index, weight_map=dict.fromkeys(json.loads(index.read_text())["weight_map"], name))
    with pytest.raises(ValueError, match="no weights in safetensors but"):
        load(parts)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_damaged_index_is_told(parts: Path, text: str) -> None:
    (parts / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"damaged model\.safetensors\.index\.json"):
        load(parts)


def test_half_a_file_of_weights_is_told(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="damaged or incomplete file of weights"):
        load(folder)


def test_a_configuration_cannot_name_weights_that_run_code(folder: Path) -> None:
    (folder / "adapter_model.bin").write_bytes(b"")  # transformers would read it
    change(folder / "config.json", transformers_weights="adapter_model.bin")
    with pytest.raises(ValueError, match=r"no weights in safetensors but 'adapter_model\.bin'"):
        load(folder)


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_cannot_name_code_on_the_hub(folder: Path, key: str) -> None:
    change(folder / "config.json", **{key: "someone/attention"})
    with pytest.raises(ValueError, match="'someone/attention', which is code on the Hub"):
        load(folder)


def test_an_adapter_over_a_model_is_not_put_into_it_unasked(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="holds a PEFT adapter"):
        load(folder)


@pytest.mark.parametrize("device", ["cuda:99", "xla", "nonsense", "meta", ""])
def test_a_device_that_is_not_here_is_told_before_anything_is_read(device: str) -> None:
    with pytest.raises(ValueError, match=r"device .*choose one of cpu"):
        load("/no/such/folder", device=device)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="there is one")
def test_apples_gpu_is_told_to_be_missing(folder: Path) -> None:
    with pytest.raises(ValueError, match="no device 'mps' here"):
        load(folder, device="mps")


def test_the_first_gpu_is_taken_or_the_cpu() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert pick_device(None).type == expected
    assert pick_device(torch.device("cpu")) == torch.device("cpu")


def test_chat_templates_come_along(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("file:{{ messages[0].content }}")
    assert LanguageModel(*load(folder)).tokenizer.chat_template.startswith("file:")
    more = folder / "additional_chat_templates"
    more.mkdir()
    (more / "tool_use.jinja").write_text("tools")
    lm = LanguageModel(*load(folder))
    assert lm.tokenizer.decode(lm.prompt("Hi")) == "file:Hi"  # the one without a name
    (folder / "chat_template.jinja").unlink()
    (more / "tool_use.jinja").unlink()
    change(folder / "tokenizer_config.json", chat_template="old:{{ messages[0].content }}")
    lm = LanguageModel(*load(folder))
    assert lm.tokenizer.decode(lm.prompt("Hi")) == "old:Hi"


@pytest.mark.parametrize(
    ("settings", "limit"),
    [
        ({}, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024),
        ({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}, 256),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 4.0}, 256),
    ],
)
def test_the_context_follows_the_scaling_of_positions(settings: Any, limit: int) -> None:
    config = build().config
    config.rope_parameters = {"rope_theta": 10000.0, "rope_type": "default"} | settings
    tokenizer = byte_tokenizer()
    assert context_limit(config, tokenizer) == limit
    tokenizer.model_max_length = 100
    assert context_limit(config, tokenizer) == 100


def test_models_without_positions_have_a_limit_too() -> None:
    assert context_limit(MambaConfig(), byte_tokenizer()) == 2048
    assert context_limit(MptConfig(max_seq_len=4096), byte_tokenizer()) == 4096
