"""Adapters: every architecture and kind, no trace in the model outside of `attached`, exports.

peft's own model, made by `get_peft_model` and given our weights, is the oracle.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from conftest import CONFIGS, build
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from sift_rag.adapters import Adapter, Adapters
from sift_rag.exporting import write_peft
from sift_rag.training import TrainingConfig, train

IDS = torch.arange(40)[None]  # (1, T)


def layers(model: nn.Module) -> list[nn.Module]:
    return list(model.modules())


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits.clone()
    return found


@pytest.mark.parametrize("architecture", CONFIGS)
def test_all_linear_is_every_linear_layer_but_the_head(architecture: str) -> None:
    model = build(architecture)
    head = model.get_output_embeddings()
    expected = sum(
        3 * sum(layer.weight.shape)
        for layer in model.modules()
        if isinstance(layer, nn.Linear | Conv1D) and layer is not head
    )
    adapter = Adapter(model, 3, "all-linear")
    assert adapter.weights.numel() == expected


@pytest.mark.parametrize("architecture", CONFIGS)
def test_attaching_changes_the_model_and_detaching_undoes_it(architecture: str) -> None:
    model = build(architecture)
    before, was, names = logits(model), layers(model), set(dict(model.named_modules()))
    adapter = Adapter(model, 4, "all-linear")
    assert layers(model) == was
    adapter.reset(seed=0, alpha=8)
    with adapter.attached():
        assert torch.equal(logits(model), before)  # B is zero
        adapter.weights.data.normal_(generator=torch.Generator().manual_seed(0))
        assert not torch.equal(logits(model), before)
    assert layers(model) == was
    assert set(dict(model.named_modules())) == names
    assert torch.equal(logits(model), before)
    assert not hasattr(model, "peft_config")


def test_what_may_be_trained_is_restored_after_an_error(model: Any) -> None:
    model.get_output_embeddings().requires_grad_(False)
    before = {name: weight.requires_grad for name, weight in model.named_parameters()}
    assert set(before.values()) == {True, False}
    adapter = Adapter(model, 4, "all-linear")
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before

    def fail() -> None:
        with adapter.attached():
            trainable = {n for n, weight in model.named_parameters() if weight.requires_grad}
            assert trainable
            assert all("lora_" in name for name in trainable)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {name: weight.requires_grad for name, weight in model.named_parameters()} == before


def test_a_reset_gives_the_first_weights_of_that_seed_back(model: Any) -> None:
    adapter = Adapter(model, 4, "all-linear")
    adapter.reset(seed=1, alpha=8)
    first = adapter.weights.detach().clone()
    assert 0.4 < (first != 0).float().mean() < 0.6  # all of A, none of B
    adapter.weights.data.fill_(3.0)
    adapter.weights.grad.fill_(3.0)  # type: ignore[union-attr]
    adapter.reset(seed=2, alpha=8)
    assert not torch.equal(adapter.weights, first)
    adapter.reset(seed=1, alpha=8)
    assert torch.equal(adapter.weights, first)
    assert not adapter.weights.grad.any()  # type: ignore[union-attr]


def test_making_and_resetting_draw_no_random_number_of_the_process(model: Any) -> None:
    before = torch.get_rng_state()
    Adapter(model, 4, "all-linear").reset(seed=0, alpha=8)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_are_float32_in_a_bfloat16_model(model: Any) -> None:
    model.to(torch.bfloat16)
    adapter = Adapter(model, 4, "all-linear")
    adapter.reset(seed=0, alpha=8)
    with adapter.attached():
        found = {weight.dtype for name, weight in model.named_parameters() if "lora_" in name}
        model(input_ids=IDS, use_cache=False).logits.float().sum().backward()
    assert found == {torch.float32}
    assert adapter.weights.grad.abs().sum() > 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("no_such_layer",), "no_such_layer"),
        (("embed_tokens", "q_proj"), "'embed_tokens', which is no linear layer"),
        (("norm",), "not supported"),
    ],
)
def test_a_wrong_target_is_named_and_leaves_no_trace(
    model: Any, targets: tuple[str, ...], message: str
) -> None:
    was = layers(model)
    with pytest.raises(ValueError, match=message):
        Adapter(model, 4, targets)
    assert layers(model) == was
    assert all(weight.requires_grad for weight in model.parameters())


def test_the_last_few_shapes_are_kept(model: Any) -> None:
    adapters = Adapters(model)
    first, second = adapters.get(2, "all-linear"), adapters.get(2, ("q_proj",))
    assert first is adapters.get(2, "all-linear")
    assert second.weights.numel() < first.weights.numel()
    for rank in (3, 4, 5):
        adapters.get(rank, "all-linear")
    assert adapters.get(2, "all-linear") is first
    assert adapters.get(2, ("q_proj",)) is not second  # the one that was idle longest


LORA: dict[str, Any] = {"peft_type": "LORA"}
PREFIX: dict[str, Any] = {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 5}
KINDS: dict[str, dict[str, Any]] = {
    "lora": LORA,
    "rslora": LORA | {"use_rslora": True, "r": 5, "lora_alpha": 3},
    "dora": LORA | {"use_dora": True},
    "gaussian": LORA | {"init_lora_weights": "gaussian"},
    "one layer": LORA | {"layers_to_transform": [1]},
    "pattern": LORA | {"rank_pattern": {r".*0\..*": 2}, "alpha_pattern": {r".*1\..*": 3}},
    "ia3": {"peft_type": "IA3"},
    "prefix": PREFIX,
}
LYCORIS: dict[str, dict[str, Any]] = {
    "loha": {"peft_type": "LOHA"},
    "lokr": {"peft_type": "LOKR", "decompose_both": True},
}
IA3_OWN: dict[
    str, tuple[list[str], list[str]]
] = {  # architectures for which peft has no choice of its own
    "qwen2": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "gemma": (["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "phi3": (["qkv_proj", "down_proj"], ["down_proj"]),
    "lfm2": (["k_proj", "v_proj", "w2"], ["w2"]),
}
STEPS = TrainingConfig(rank=4, alpha=8, learning_rate=1e-2, steps=3, guard=None)
TEXTS = [list(b"The pump in Oslo weighs 31 kg."), list(b"Ada looks after the crane.")]


def settings_of(kind: str, architecture: str = "llama") -> dict[str, Any]:
    settings = (KINDS | LYCORIS)[kind]
    if kind == "ia3" and architecture in IA3_OWN:
        targets, feedforward = IA3_OWN[architecture]
        settings = settings | {"target_modules": targets, "feedforward_modules": feedforward}
    if kind == "prefix" and architecture == "lfm2":
        pytest.skip("a model of convolutions: see the test that it is refused")
    return settings


def made(model: Any, settings: dict[str, Any]) -> Adapter:
    return Adapter(model, STEPS.rank, STEPS.target_modules, settings)


def taught(model: Any, settings: dict[str, Any]) -> Adapter:
    """An adapter that was trained for a few steps."""
    adapter = made(model, settings)
    with adapter.attached():
        train(model, adapter, TEXTS, STEPS)
    return adapter


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_learns_and_leaves_the_base_bit_for_bit(kind: str, architecture: str) -> None:
    model, settings = build(architecture), settings_of(kind, architecture)
    before, was = logits(model), layers(model)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    random = torch.get_rng_state()
    adapter = made(model, settings)
    assert layers(model) == was
    with adapter.attached():
        adapter.reset(seed=0, alpha=8)
        assert torch.equal(logits(model), before) == (kind != "prefix")
        first = train(model, adapter, TEXTS, STEPS).losses
        learnt, weights = logits(model), adapter.weights.detach().clone()
        assert not torch.equal(learnt, before)
        with adapter.silent():
            assert torch.equal(logits(model), before)
        assert torch.equal(logits(model), learnt)
        train(model, adapter, TEXTS[::-1], replace(STEPS, seed=3))
        assert train(model, adapter, TEXTS, STEPS).losses == first
        assert torch.equal(adapter.weights, weights)
        assert torch.equal(logits(model), learnt)
    assert layers(model) == was
    assert torch.equal(logits(model), before)
    assert all(torch.equal(state[name], weight) for name, weight in model.state_dict().items())
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert not model._forward_pre_hooks
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("kind", KINDS | LYCORIS)
def test_a_step_moves_every_part(kind: str) -> None:
    """Each parameter that peft trains is in the flat buffer, and its gradient arrives there."""
    model = build()
    adapter = made(model, settings_of(kind))
    adapter.reset(seed=0, alpha=8)
    with torch.no_grad():
        adapter.weights.data += torch.rand_like(adapter.weights) / 10  # B is zero no more
    with adapter.attached():
        model(input_ids=IDS, use_cache=False).logits.square().sum().backward()
        names = {name: w for name, w in model.named_parameters() if w.requires_grad}
    assert adapter.weights.grad is not None
    assert (adapter.weights.grad != 0).float().mean() > 0.95
    if kind != "prefix":
        assert sum(weight.numel() for weight in names.values()) == adapter.weights.numel()
    adapter.clear()
    assert not adapter.weights.grad.any()


@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")  # peft with transformers 5
@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_loaded_by_peft_and_says_the_same(
    kind: str, architecture: str, tmp_path: Path
) -> None:
    model, settings = build(architecture), settings_of(kind, architecture)
    adapter = taught(model, settings)
    adapter.export(tmp_path / "one", "the/base")
    with adapter.attached():
        ours = logits(model)
    theirs: Any = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "one"))
    torch.testing.assert_close(logits(theirs.eval()), ours, rtol=0, atol=0)
    adapter.export(tmp_path / "one", "the/base")  # in its own place
    assert sorted(item.name for item in tmp_path.iterdir()) == ["one"]


@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")
@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_weights_in_peft_give_the_same_logits(kind: str, architecture: str) -> None:
    model, settings = build(architecture), settings_of(kind, architecture)
    adapter = taught(model, settings)
    with adapter.attached():
        ours = logits(model)
    config = copy.deepcopy(adapter._inside.config)
    if "lora_alpha" in config.to_dict():
        config.lora_alpha = settings.get("lora_alpha", 8)
    if kind == "prefix":
        config = peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    theirs: Any = peft.get_peft_model(copy.deepcopy(model), config).eval()
    mine = {name: weight for name, weight in theirs.named_parameters() if weight.requires_grad}
    assert sum(weight.numel() for weight in mine.values()) == adapter.weights.numel()
    peft.set_peft_model_state_dict(theirs, adapter._inside.named())
    assert set(adapter._inside.named()) == set(peft.get_peft_model_state_dict(theirs))
    torch.testing.assert_close(logits(theirs), ours, rtol=0, atol=0)


def test_settings_of_plain_lora_are_the_adapter_without_settings(model: Any) -> None:
    plain, same = Adapter(model, 4, "all-linear"), made(model, LORA)
    for adapter in (plain, same):
        adapter.reset(seed=1, alpha=8)
    assert torch.equal(plain.weights, same.weights)
    adapters = Adapters(model)
    config: Any = peft.LoraConfig(r=4, lora_alpha=8, use_rslora=True)
    first = adapters.get(4, "all-linear", config)
    assert adapters.get(4, "all-linear", config.to_dict()) is first
    assert adapters.get(4, "all-linear") is not first


def test_alpha_is_peft_s_where_it_says_one_and_ours_where_not(model: Any) -> None:
    def scalings(settings: dict[str, Any]) -> set[float]:
        adapter = made(model, settings)
        adapter.reset(seed=0, alpha=8)
        with adapter.attached():
            return {
                scaling
                for layer in model.modules()
                if isinstance(layer, LoraLayer)
                for scaling in layer.scaling.values()
            }

    assert scalings(LORA) == {8 / 4}
    assert scalings(LORA | {"lora_alpha": 2}) == {2 / 4}
    assert scalings(LORA | {"use_rslora": True}) == {8 / 2}
    assert scalings(LORA | {"r": 16, "alpha_pattern": {"q_proj": 4}}) == {8 / 16, 4 / 16}


@pytest.mark.parametrize("kind", LYCORIS)
def test_loha_and_lokr_learn_too(model: Any, kind: str) -> None:
    before = logits(model)
    adapter = taught(model, settings_of(kind))
    first = adapter.weights.detach().clone()
    with adapter.attached():
        assert not torch.equal(logits(model), before)
        report = train(model, adapter, TEXTS, STEPS)
    assert report.losses[2] < report.losses[0]
    assert torch.equal(adapter.weights, first)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", ["dora", "ia3", "prefix"])
def test_a_16_bit_base_is_begun_at_and_learns(model: Any, kind: str) -> None:
    model.to(torch.bfloat16)
    before = logits(model)
    adapter = made(model, settings_of(kind))
    adapter.reset(seed=0, alpha=8)
    assert adapter.weights.dtype == torch.float32
    with adapter.attached():
        if kind != "prefix":
            assert torch.equal(logits(model), before)
        report = train(model, adapter, TEXTS, replace(STEPS, steps=8))
    assert sum(report.losses[-2:]) < sum(report.losses[:2])
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("architecture", [name for name in CONFIGS if name != "lfm2"])
def test_a_prefix_lies_before_a_text_that_is_generated(architecture: str) -> None:
    model = build(architecture)
    adapter = taught(model, PREFIX)

    def written(by: Any) -> list[int]:
        ids = IDS[:, :9]
        out = by.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        return list(out[0, 9:].tolist())

    base = written(model)
    with adapter.attached():
        ours = written(model)
        # The same without a cache, token for token: the prefix counts as tokens before the text.
        ids = IDS[:, :9]
        for token in ours:
            with torch.no_grad():
                assert model(input_ids=ids, use_cache=False).logits[0, -1].argmax() == token
            ids = torch.cat([ids, torch.tensor([[token]])], 1)
    assert written(model) == base
    assert architecture == "gemma" or ours != base  # its first weights say one thing only


def test_a_prefix_is_of_the_length_that_was_asked_for_and_can_be_projected(model: Any) -> None:
    plain = made(model, PREFIX)
    assert plain.weights.numel() == 5 * 2 * 2 * 32  # tokens, keys and values, layers, width
    assert plain.length == 5
    assert made(model, LORA).length == 0
    adapter = made(model, PREFIX | {"prefix_projection": True, "encoder_hidden_size": 7})
    adapter.reset(seed=0, alpha=1)
    assert adapter.weights.numel() == 5 * 32 + 7 * 33 + 128 * 8
    with adapter.attached():
        losses = train(model, adapter, TEXTS, replace(STEPS, steps=8)).losses
    assert sum(losses[-2:]) < sum(losses[:2])


@pytest.mark.filterwarnings("ignore:.*checkpointing:FutureWarning")
def test_a_projected_prefix_is_exported_as_keys_and_values(model: Any, tmp_path: Path) -> None:
    adapter = taught(model, PREFIX | {"prefix_projection": True})
    adapter.export(tmp_path / "one", "the/base")
    with adapter.attached():
        ours = logits(model)
    theirs: Any = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(tmp_path / "one"))
    torch.testing.assert_close(logits(theirs.eval()), ours)


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        (
            "lfm2",
            PREFIX,
            "keys and values of one shape; of this lfm2 1 of 2 do.*take a LoRA, peft=",
        ),
        (
            "phi3",
            {"peft_type": "IA3"},
            "no choice of layers for IA3 in a 'phi3': name them, such",
        ),
        ("llama", PREFIX | {"num_virtual_tokens": 0}, "num_virtual_tokens is 0; it must be"),
        ("llama", {"peft_type": "PREFIX_TUNING"}, "num_virtual_tokens is None"),
        ("llama", LORA | {"target_modules": ["embed_tokens"]}, "which is no linear layer"),
        ("llama", LORA | {"target_modules": ["nowhere"]}, "nowhere"),
        ("llama", LORA | {"modules_to_save": ["lm_head"]}, "modules_to_save"),
    ],
)
def test_what_cannot_be_made_is_an_error_and_leaves_no_trace(
    architecture: str, settings: dict[str, Any], message: str
) -> None:
    model = build(architecture)
    was = layers(model)
    with pytest.raises(ValueError, match=message):
        made(model, settings)
    assert layers(model) == was
    assert all(weight.requires_grad for weight in model.parameters())


class TestExport:
    def config(self, folder: Path) -> dict[str, Any]:
        return dict(json.loads((folder / "adapter_config.json").read_text()))

    def test_it_is_laid_out_as_vllm_and_sglang_read_it(self, model: Any, tmp_path: Path) -> None:
        taught(model, LORA).export(tmp_path / "one", "the/base")
        config = self.config(tmp_path / "one")
        ends = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
        assert config["target_modules"] == ends
        assert (config["r"], config["lora_alpha"], config["bias"]) == (4, 8, "none")
        assert (config["peft_type"], config["task_type"]) == ("LORA", "CAUSAL_LM")
        assert not config["modules_to_save"]
        assert not config["use_dora"]
        assert config["base_model_name_or_path"] == "the/base"
        assert config["inference_mode"] is True

        from safetensors.torch import load_file

        weights = load_file(tmp_path / "one" / "adapter_model.safetensors")
        key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
        assert weights[key].shape == (4, 32)
        assert len(weights) == 2 * 2 * 7
        assert {weight.dtype for weight in weights.values()} == {torch.float32}

    def test_layers_that_cannot_be_told_by_their_ends_are_named_in_full(
        self, model: Any, tmp_path: Path
    ) -> None:
        settings = LORA | {"target_modules": ["q_proj"], "layers_to_transform": [1]}
        taught(model, settings).export(tmp_path / "one", "the/base", dtype="bfloat16")
        config = self.config(tmp_path / "one")
        assert config["target_modules"] == ["model.layers.1.self_attn.q_proj"]
        assert config["layers_to_transform"] is None

    def test_what_is_there_stays(self, model: Any, tmp_path: Path) -> None:
        adapter = taught(model, LORA)
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(FileExistsError, match=r"holds 'notes.txt' and is no folder"):
            adapter.export(tmp_path, "the/base")
        with pytest.raises(FileExistsError, match="is not a folder"):
            adapter.export(tmp_path / "notes.txt", "the/base")
        assert [item.name for item in tmp_path.iterdir()] == ["notes.txt"]

    def test_a_failure_leaves_what_was_there(self, model: Any, tmp_path: Path) -> None:
        adapter = taught(model, LORA)
        adapter.export(tmp_path / "one", "the/base")
        was = self.config(tmp_path / "one")
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_peft(tmp_path / "one", {"lora_alpha": float("nan")}, {})
        assert self.config(tmp_path / "one") == was
        assert [item.name for item in tmp_path.iterdir()] == ["one"]

    def test_an_adapter_without_weights_is_not_exported(self, model: Any, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="no weights yet"):
            made(model, LORA).export(tmp_path / "one", "the/base")
        with pytest.raises(ValueError, match="dtype is 'int8'; it must be one of float32"):
            taught(model, LORA).export(tmp_path / "one", "the/base", dtype="int8")  # type: ignore[arg-type]
        assert not list(tmp_path.iterdir())
