"""Loading a model: what is refused, how it says so, and that nothing is printed."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import build, byte_tokenizer
from transformers import BertConfig, LlamaConfig, LlamaModel, T5Config

from sift_rag.loading import check_causal, load


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
