"""Adapters: every architecture, and no trace in the model outside of `attached`."""

from typing import Any

import pytest
import torch
from conftest import CONFIGS, build
from torch import nn
from transformers.pytorch_utils import Conv1D

from sift_rag.adapters import Adapter, Adapters

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
