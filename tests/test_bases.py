"""Bases as they come: 16 bits, quantised, many architectures, texts up to the model's limit."""

import copy
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import BOS, CONFIGS, CONTEXT, EOS, TRAINING, build, byte_tokenizer
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    BloomConfig,
    DeepseekV3Config,
    FalconConfig,
    Llama4TextConfig,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from sift_rag import tiny
from sift_rag.adapters import Adapter, Adapters
from sift_rag.engine import Engine
from sift_rag.generation import LanguageModel, score
from sift_rag.loading import load
from sift_rag.quantised import check_gradients
from sift_rag.training import TrainingConfig, train

_SPECIAL: dict[str, Any] = {
    "vocab_size": 260,
    "initializer_range": 0.1,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": None,
}
_SIZE = _SPECIAL | {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2}
_LONG: dict[str, Any] = {"intermediate_size": 64, "max_position_embeddings": CONTEXT}
_EXPERTS: dict[str, Any] = {
    "num_key_value_heads": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
MORE: dict[str, Any] = {
    "mistral": lambda: MistralConfig(**_SIZE, **_LONG, num_key_value_heads=1, sliding_window=64),
    "falcon": lambda: FalconConfig(**_SIZE, multi_query=True, max_position_embeddings=CONTEXT),
    "bloom": lambda: BloomConfig(hidden_size=32, n_layer=2, n_head=2, **_SPECIAL),
    "mamba": lambda: MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=8, **_SPECIAL),
    "mamba2": lambda: Mamba2Config(
        hidden_size=32,
        num_hidden_layers=2,
        state_size=8,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=16,
        **_SPECIAL,
    ),
    # Mixtures of experts: all experts of a layer are one parameter in transformers 5.
    "mixtral": lambda: MixtralConfig(**_SIZE, **_LONG, num_key_value_heads=1, num_local_experts=4),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **_SIZE, **_LONG, **_EXPERTS, num_experts=4, shared_expert_intermediate_size=32
    ),
    "qwen3_moe": lambda: Qwen3MoeConfig(**_SIZE, **_LONG, **_EXPERTS, num_experts=4),
    "deepseek_v3": lambda: DeepseekV3Config(
        **_SIZE,
        **_LONG,
        **_EXPERTS | {"num_key_value_heads": 2},
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    ),
    "llama4": lambda: Llama4TextConfig(
        **_SIZE,
        **_LONG,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=2,
        intermediate_size_mlp=64,
    ),
}
PASSAGE = "The lamp in the hall of the house is red. " * 3


def made(architecture: str) -> Any:
    if architecture in CONFIGS:
        return build(architecture)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        return auto.from_config(MORE[architecture]()).eval()


def weights(model: Any) -> dict[str, Any]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def same(model: Any, before: dict[str, Any]) -> bool:
    return all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("architecture", [*CONFIGS, *MORE])
def test_a_base_of_16_bits_learns_and_stays_as_it_was(architecture: str, dtype: Any) -> None:
    model = made(architecture).to(dtype)
    before = weights(model)
    with Engine(model, byte_tokenizer(), training=TRAINING, max_new_tokens=4) as engine:
        answer = engine.answer("What?", [PASSAGE], mode="both")
    assert answer.training
    losses = answer.training.losses
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    assert same(model, before)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=torch.arange(40)[None], use_cache=False).logits.clone()
    return found


@pytest.mark.parametrize("architecture", MORE)
def test_every_mode_answers_and_leaves_the_base(architecture: str) -> None:
    model = made(architecture)
    before, was = weights(model), logits(model)
    training = TrainingConfig(rank=4, alpha=8, epochs=2, learning_rate=1e-2)  # with its guard
    with Engine(model, byte_tokenizer(), training=training, max_new_tokens=4) as engine:
        for mode in ("closed_book", "stuff", "train", "both"):
            passages = [] if mode == "closed_book" else [PASSAGE]
            answer = engine.answer("What?", passages, mode=mode)
            assert answer.mode == mode
            assert answer.usage["completion_tokens"] > 0
            if answer.training:
                assert answer.training.stopped == "completed"
                assert answer.training.losses[-1] < answer.training.losses[0]
    assert same(model, before)
    assert torch.equal(logits(model), was)


ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
DENSE = {"gate_proj", "up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("mamba", {"in_proj", "x_proj", "dt_proj"}),  # no out_proj, no conv1d: peft's rule
        ("mamba2", {"in_proj"}),
        ("mixtral", ATTENTION),
        ("qwen2_moe", ATTENTION | DENSE | {"shared_expert_gate"}),
        ("qwen3_moe", ATTENTION),
        # Its dense layers bear the names that peft takes for experts.
        ("deepseek_v3", {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}),
        ("llama4", ATTENTION | DENSE),  # not its router, whose output is no tensor
    ],
)
@pytest.mark.parametrize("settings", [{}, {"layers_to_transform": [0, 1]}], ids=["all", "two"])
def test_all_linear_is_what_peft_takes_and_learns(
    architecture: str, layers: set[str], settings: dict[str, Any]
) -> None:
    model = made(architecture)
    was, modules, ids = logits(model), list(model.modules()), [list(PASSAGE.encode())]
    adapter = Adapter(model, 4, "all-linear", {"peft_type": "LORA"} | settings)
    names = {name.partition(".lora_")[0] for name in adapter._inside.named()}
    assert {name.rpartition(".")[2] for name in names} == layers
    with adapter.attached():
        first = train(model, adapter, ids, TRAINING).losses
        learnt = adapter.weights.detach().clone()
        assert train(model, adapter, ids, TRAINING).losses == first
    assert first[-1] < first[0]
    assert torch.equal(adapter.weights, learnt)
    assert list(model.modules()) == modules
    assert torch.equal(logits(model), was)


EXPERTS: dict[str, list[str]] = {
    "mixtral": ["experts.gate_up_proj", "experts.down_proj"],
    "qwen2_moe": ["mlp.experts.down_proj"],
    "qwen3_moe": ["experts.gate_up_proj", "experts.down_proj"],
    "llama4": ["feed_forward.experts.gate_up_proj"],
}


@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")  # peft with transformers 5
@pytest.mark.parametrize("architecture", EXPERTS)
@pytest.mark.parametrize("others", [{}, {"target_modules": []}, {"init_lora_weights": "gaussian"}])
def test_experts_learn_where_their_parameters_are_named(
    architecture: str, others: Any, tmp_path: Path
) -> None:
    model = made(architecture)
    before, was, modules = weights(model), logits(model), list(model.modules())
    config: Any = peft.LoraConfig(
        r=4, lora_alpha=8, target_parameters=EXPERTS[architecture], **others
    )
    training = TrainingConfig(epochs=3, learning_rate=1e-2, guard=None, peft=config)
    adapter = Adapter(model, training.rank, training.target_modules, training.peft)
    ids = [list(PASSAGE.encode())]
    with adapter.attached():
        adapter.reset(seed=0, alpha=8)
        assert torch.equal(logits(model), was)
        losses = train(model, adapter, ids, training).losses
        learnt, ours = adapter.weights.detach().clone(), logits(model)
        adapter.export(tmp_path / "one", "the/base")
        assert train(model, adapter, ids, training).losses == losses
        assert torch.equal(adapter.weights, learnt)
        with adapter.silent():
            assert torch.equal(logits(model), was)
    assert losses[-1] < losses[0]
    assert list(model.modules()) == modules
    assert same(model, before)
    assert torch.equal(logits(model), was)
    theirs: Any = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "one"))
    assert torch.equal(logits(theirs.eval()), ours)
    with Engine(model, byte_tokenizer(), training=training, max_new_tokens=4) as engine:
        report = engine.answer("What?", [PASSAGE], mode="train").training
    assert report
    assert report.adapter_used
    assert same(model, before)


def test_experts_begin_as_peft_draws_them() -> None:
    config: Any = peft.LoraConfig(
        r=4,
        target_modules=[],
        target_parameters=["experts.down_proj"],
        init_lora_weights="gaussian",
    )
    adapter = Adapter(made("mixtral"), 4, "all-linear", config)
    adapter.reset(seed=0, alpha=8)
    drawn = adapter.weights[adapter.weights != 0]
    assert drawn.std().item() == pytest.approx(1 / 4, rel=0.1)  # of its rank, not of four experts'


@pytest.mark.parametrize(
    ("targets", "settings", "message"),
    [
        (("w1", "w2", "w3"), {}, "peft takes for down_proj, gate_up_proj of a 'mixtral'"),
        ("all-linear", {"target_parameters": ["wrong"]}, "names 'wrong', which is no parameter"),
        ("all-linear", {"target_parameters": ["experts.down_proj"], "use_dora": True}, "use_dora"),
    ],
)
def test_what_experts_do_not_take_is_told_and_leaves_no_trace(
    targets: Any, settings: dict[str, Any], message: str
) -> None:
    model = made("mixtral")
    was = list(model.modules())
    with pytest.raises(ValueError, match=message):
        Adapter(model, 4, targets, {"peft_type": "LORA"} | settings)
    assert list(model.modules()) == was


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_an_adapter_is_float32_on_16_bits_and_learns_the_same(dtype: Any) -> None:
    losses = []
    for kind in (torch.float32, dtype):
        model = build().to(kind)
        adapter = Adapters(model).get(4, "all-linear")
        assert adapter.weights.dtype == torch.float32
        with adapter.attached():
            losses.append(train(model, adapter, [list(range(60))], TRAINING).losses)
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)


@pytest.mark.parametrize("architecture", ["qwen2", "gpt2", "gemma"])
def test_tied_embeddings_stay_tied(tmp_path: Path, architecture: str) -> None:
    build(architecture).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load(tmp_path)
    table = model.get_input_embeddings().weight
    assert model.get_output_embeddings().weight is table  # type: ignore[no-untyped-call]
    before = weights(model)
    with Engine(model, tokenizer, training=TRAINING, max_new_tokens=4) as engine:
        engine.answer("What?", [PASSAGE], mode="train")
    assert model.get_output_embeddings().weight is table  # type: ignore[no-untyped-call]
    assert same(model, before)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_prompt_may_fill_the_context_to_the_last_token(architecture: str) -> None:
    said = "x" * (CONTEXT - 1 - 4)  # with the BOS, and four tokens to write
    with Engine(build(architecture), byte_tokenizer(), max_new_tokens=4) as engine:
        answer = engine.answer("What?", prompt=said, mode="closed_book")
        assert answer.usage["prompt_tokens"] == CONTEXT - 4
        assert answer.usage["completion_tokens"] <= 4
        with pytest.raises(ValueError, match=r"takes 253 tokens and the model leaves room for 252"):
            engine.answer("What?", prompt=said + "x", mode="closed_book")


def test_a_text_longer_than_the_context_is_learnt_to_its_end() -> None:
    model, tokenizer = build("gpt2"), byte_tokenizer()  # position 256 would be an error
    lm = LanguageModel(model, tokenizer)
    ids = lm.text("x" * 600 + "the end")
    adapter = Adapters(model).get(4, "all-linear")
    with adapter.attached():
        report = train(model, adapter, [ids], TrainingConfig(rank=4, window=CONTEXT, epochs=1))
        last = score(lm, lm.prompt("x" * 50), lm.tokenizer("the end")["input_ids"][1:])
    assert report.tokens == len(ids) + 2  # two cuts, where the last token is read again
    assert report.steps == 3
    assert last < score(lm, lm.prompt("x" * 50), lm.tokenizer("the end")["input_ids"][1:])


def fp8(folder: Path) -> Any:
    """Save a Llama with 8-bit floating-point weights, as such checkpoints are laid out."""
    model = build().to(torch.bfloat16)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    state = {}
    for name, weight in model.state_dict().items():
        state[name] = weight.clone()
        if "proj" in name:
            scale = weight.abs().max().float() / 448
            state[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
            state[name.replace(".weight", ".weight_scale_inv")] = scale.reshape(1, 1)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    quantised(folder, quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128])
    return model


def quantised(folder: Path, **settings: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = settings
    (folder / "config.json").write_text(json.dumps(config))


def test_a_checkpoint_that_is_quantised_already_is_read_by_its_own_settings(tmp_path: Path) -> None:
    original = fp8(tmp_path)
    model, tokenizer = load(tmp_path, device="cpu")
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    for name, weight in original.state_dict().items():
        assert torch.allclose(model.state_dict()[name], weight, rtol=0.1, atol=1e-2), name
    with Engine(model, tokenizer, training=TRAINING, max_new_tokens=4) as engine:
        report = engine.answer("What?", [PASSAGE], mode="both").training
    assert report
    assert report.losses[-1] < report.losses[0]


def test_an_unknown_quantisation_is_not_read_as_none(tmp_path: Path) -> None:
    fp8(tmp_path)
    quantised(tmp_path, quant_method="made-up")
    with pytest.raises(ValueError, match="quantised by 'made-up', which this transformers"):
        load(tmp_path)
    with pytest.raises(ValueError, match="which this transformers does not know"):
        load(tmp_path, quantization_config="int8")


@pytest.mark.parametrize(
    ("package", "settings"),
    [
        ("bitsandbytes", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
        ("bitsandbytes", {"load_in_4bit": True}),
        ("torchao", {"quant_method": "torchao", "quant_type": {"default": {}}}),
        ("optimum", {"quant_method": "gptq", "bits": 4}),
        ("gptqmodel", {"quant_method": "awq", "bits": 4}),
    ],
)
def test_a_missing_package_is_named(tmp_path: Path, package: str, settings: Any) -> None:
    if has(package):
        pytest.skip(f"{package} is installed")
    fp8(tmp_path)
    quantised(tmp_path, **settings)
    with pytest.raises(ImportError, match=rf"(?s)with the quantisation .*{package}"):
        load(tmp_path, device="cpu")


def has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def wide(folder: Path) -> None:
    """A Llama whose layers are wide enough for blocks of 64."""
    size = _SIZE | {"hidden_size": 128, "intermediate_size": 128}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        auto.from_config(LlamaConfig(**size, max_position_embeddings=CONTEXT)).save_pretrained(
            folder
        )
    byte_tokenizer().save_pretrained(folder)


@pytest.mark.skipif(not has("bitsandbytes"), reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.filterwarnings("default")  # bitsandbytes tells of types it changes
def test_quantised_while_it_is_read_with_bitsandbytes(tmp_path: Path, bits: int) -> None:
    wide(tmp_path)
    how: Any = BitsAndBytesConfig
    learns(tmp_path, how(**{f"load_in_{bits}bit": True}))


@pytest.mark.skipif(not has("bitsandbytes"), reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.filterwarnings("default")
def test_packed_weights_count_as_what_they_stand_for(tmp_path: Path, bits: int) -> None:
    wide(tmp_path)
    how: Any = BitsAndBytesConfig
    whole = LanguageModel(*load(tmp_path, device="cpu")).size()
    packed = load(tmp_path, device="cpu", quantization_config=how(**{f"load_in_{bits}bit": True}))
    assert LanguageModel(*packed).size() == whole


@pytest.mark.skipif(not has("bitsandbytes"), reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["dora", "IA3", "LOHA", "LOKR"])
@pytest.mark.filterwarnings("default")
def test_a_kind_learns_on_quantised_layers_or_is_refused(
    tmp_path: Path, bits: int, kind: str
) -> None:
    """On the CPU peft takes the weights out of layers of 8 bits with DoRA, for good."""
    wide(tmp_path)
    how: Any = BitsAndBytesConfig
    model, _ = load(tmp_path, device="cpu", quantization_config=how(**{f"load_in_{bits}bit": True}))
    was = logits(model)
    dora = {"peft_type": "LORA", "use_dora": True}
    settings: Any = dora if kind == "dora" else {"peft_type": kind}
    if (kind, bits) in (("dora", 8), ("LOHA", 4), ("LOKR", 4)):
        with pytest.raises(ValueError, match=rf"on layers of {bits} bits.*load the model in"):
            Adapter(model, 4, "all-linear", settings)
    else:
        adapter = Adapter(model, 4, "all-linear", settings)
        adapter.reset(seed=0, alpha=8)
        with adapter.attached():
            assert torch.equal(logits(model), was)
            losses = train(model, adapter, [list(PASSAGE.encode())], TRAINING).losses
        assert losses[-1] < losses[0]
    assert torch.equal(logits(model), was)
    assert {weight.device.type for weight in model.parameters()} == {"cpu"}


@pytest.mark.skipif(not has("torchao"), reason="needs torchao")
@pytest.mark.filterwarnings("default")
def test_quantised_while_it_is_read_with_torchao(tmp_path: Path) -> None:
    from torchao.quantization import (  # type: ignore[import-not-found,import-untyped,unused-ignore]
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
    )
    from transformers import TorchAoConfig

    wide(tmp_path)
    how: Any = TorchAoConfig
    learns(tmp_path, how(Int8WeightOnlyConfig()))
    model, _ = load(
        tmp_path, device="cpu", quantization_config=how(Int8DynamicActivationInt8WeightConfig())
    )
    with pytest.raises(ValueError, match="No gradient passes through the quantised layer"):
        Adapters(model).get(4, "all-linear")


def learns(folder: Path, how: Any) -> None:
    with Engine.from_pretrained(folder, device="cpu") as plain:
        wanted = plain.answer("What?", [PASSAGE], mode="train", training=TRAINING).training
    model, tokenizer = load(folder, device="cpu", quantization_config=how)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(input_ids=ids).logits
    with Engine(model, tokenizer, training=TRAINING, max_new_tokens=4) as engine:
        report = engine.answer("What?", [PASSAGE], mode="both").training
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, before)
    assert report
    assert wanted
    fall, whole = (one.losses[0] - one.losses[-1] for one in (report, wanted))
    assert fall > 0.8 * whole  # a gradient that goes through the last layers only does a third


class Cut(torch.nn.Linear):
    """A layer for inference alone."""

    def forward(self, input: Any) -> Any:
        return super().forward(input).detach()


def test_a_layer_that_stops_the_gradient_is_told() -> None:
    model = build()
    check_gradients(model)
    check_gradients(build("gpt2"))
    before = weights(model)
    model.model.layers[1].mlp.up_proj = Cut(32, 64, bias=False)
    with pytest.raises(ValueError, match=r"layer 'model\.layers\.1\.mlp\.up_proj' \(Cut,"):
        Adapters(model).get(4, "all-linear")
    assert weights(model).keys() == before.keys()


def test_a_model_on_several_devices_is_not_trained_on() -> None:
    model = build()
    model.model.layers[1].to("meta")  # where weights lie that were offloaded
    with pytest.raises(ValueError, match=r"several devices \(cpu, meta\).*model\.to\(device\)"):
        Adapters(model).get(4, "all-linear")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_bundled_model_predicts_alike_in_16_bits(dtype: str) -> None:
    nats = []
    for kind in ("float32", dtype):
        lm = LanguageModel(*load(tiny.FOLDER, device="cpu", dtype=kind))
        nats.append(score(lm, lm.prompt("Question: Where is it?"), lm.continuation("In the hall")))
    assert nats[1] == pytest.approx(nats[0], rel=0.02)


def test_stories260k_is_the_same_from_parts(data: Path, tmp_path: Path) -> None:
    folder = data / "lm" / "stories260K"
    model, tokenizer = load(folder, device="cpu")
    model.save_pretrained(tmp_path, max_shard_size="300KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    ids = tokenizer("Once upon a time", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        assert torch.equal(load(tmp_path, device="cpu")[0](input_ids=ids).logits, expected)


WATCH = """
import os, sys
written = []
def watch(event, args):
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR):
        if str(args[0]) != os.devnull:
            written.append(args[0])
    elif event in ("os.mkdir", "os.rename", "os.remove", "shutil.copyfile"):
        written.append((event, *args))
from sift_rag.engine import Engine
from sift_rag.training import TrainingConfig
sys.addaudithook(watch)
training = TrainingConfig(rank=4, steps=2)
with Engine.from_pretrained(sys.argv[1], device="cpu", training=training) as engine:
    engine.answer("What?", ["The lamp is red."], mode="both", max_new_tokens=2)
print(written)
"""


def test_loading_training_and_answering_write_nothing(tmp_path: Path) -> None:
    build().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    done = subprocess.run(
        [sys.executable, "-B", "-c", WATCH, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.stdout.strip() == "[]"
