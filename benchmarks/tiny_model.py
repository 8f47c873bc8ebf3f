"""The bundled LM as a model: its architecture, its first weights, and its folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny_examples import END
from tokenizers import Tokenizer
from torch import nn
from transformers import Lfm2Config, Lfm2ForCausalLM

CONTEXT = 512


def new_model(tokenizer: Tokenizer) -> Lfm2ForCausalLM:
    """Short convolutions and attention in turn.

    A convolution reaches 12 tokens back, over a sentence's words from its value to its name.
    """
    end = tokenizer.token_to_id(END)
    config = Lfm2Config(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=192,
        intermediate_size=512,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=6,
        layer_types=["conv", "full_attention"] * 3,
        num_attention_heads=3,
        num_key_value_heads=3,
        conv_L_cache=12,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = Lfm2ForCausalLM(config)
    _initialise(model)
    return model


@torch.no_grad()
def _initialise(model: Lfm2ForCausalLM) -> None:
    """Unit gain everywhere, and attention that begins as "copy from where the same token stands".

    The usual 0.02 all but silences a model this narrow: a short convolution multiplies three such
    projections. Queries begin equal to keys and the output as the values' inverse ("mimetic"
    initialisation, Trockman & Kolter 2023, arXiv 2305.09828).
    """
    for name, weight in model.named_parameters():
        if "embed_tokens" in name:
            weight.normal_(std=0.05)
        elif name.endswith("conv.conv.weight"):
            weight.normal_(std=0.1)
            weight[..., -4:].normal_(std=0.4)
        elif weight.dim() == 2:
            weight.normal_(std=weight.shape[1] ** -0.5)
        if name.endswith(("w2.weight", "conv.out_proj.weight")):
            weight.mul_(0.5)
    for layer in model.model.layers:
        if layer.is_attention_layer:
            attention = layer.self_attn
            nn.init.orthogonal_(attention.v_proj.weight)
            attention.out_proj.weight.copy_(attention.v_proj.weight.T)
            attention.k_proj.weight.copy_(attention.q_proj.weight)


def save(model: Lfm2ForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Weights in 16 bits (loading makes them 32 again), configuration and tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {
        name: weight.detach().half().contiguous()
        for name, weight in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    save_file(halves, folder / "model.safetensors", metadata={"format": "pt"})
    model.config.dtype = "float16"
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        # The name that transformers 4 and 5 both know.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
    _write(folder / "tokenizer_config.json", settings)
    end = tokenizer.token_to_id(END)
    _write(folder / "generation_config.json", {"eos_token_id": end, "pad_token_id": end})


def _write(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
