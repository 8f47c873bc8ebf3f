"""Tiny models of several architectures, a byte-level tokenizer, and where the open data lies."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    Lfm2Config,
    LlamaConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from sift_rag.engine import Engine
from sift_rag.training import TrainingConfig

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background jobs inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)  # some tests interrupt themselves

settings.register_profile("shared", deadline=None)  # a busy machine is no error
settings.load_profile("shared")

CONTEXT = 256
BOS, EOS = 256, 257
# Random weights know no language: a guard would see harm in whatever is learnt.
TRAINING = TrainingConfig(rank=4, alpha=8, epochs=2, learning_rate=1e-2, guard=None)

_SPECIAL: dict[str, Any] = {
    "initializer_range": 0.1,
    "vocab_size": 260,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
_LAYERS: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
_SIZE: dict[str, Any] = (
    _LAYERS | {"intermediate_size": 64, "max_position_embeddings": CONTEXT} | _SPECIAL
)
CONFIGS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**_SIZE, tie_word_embeddings=False),
    "gpt2": lambda: GPT2Config(n_layer=2, n_embd=32, n_head=2, n_positions=CONTEXT, **_SPECIAL),
    "qwen2": lambda: Qwen2Config(**_SIZE, num_key_value_heads=1, tie_word_embeddings=True),
    "phi3": lambda: Phi3Config(**_SIZE),  # query, key and value are one layer
    "gemma": lambda: GemmaConfig(**_SIZE, head_dim=16, num_key_value_heads=1),
    "gpt_neox": lambda: GPTNeoXConfig(**_SIZE),
    "lfm2": lambda: Lfm2Config(
        **_SIZE,
        num_key_value_heads=1,
        layer_types=["conv", "full_attention"],
        block_auto_adjust_ff_dim=False,
    ),
}


def build(architecture: str = "llama") -> Any:
    """A model with random weights, the same ones each time; the process's random state stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(CONFIGS[architecture]())
    return model.eval()


def byte_tokenizer(*, bos: bool = True) -> Any:
    """One token a byte; a text begins with a BOS where wanted."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    if bos:
        from tokenizers.processors import TemplateProcessing

        made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture
def model() -> Any:
    return build()


@pytest.fixture
def engine(model: Any, tokenizer: Any) -> Iterator[Engine]:
    """A Llama of two layers that takes two steps a passage and writes eight bytes."""
    with Engine(model, tokenizer, training=TRAINING, max_new_tokens=8) as made:
        yield made


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of open data, which a clone does not have."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SIFT_RAG_DATA", beside))
    if not folder.is_dir():
        pytest.skip("needs the open data: set SIFT_RAG_DATA to its folder")
    return folder
