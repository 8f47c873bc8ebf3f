"""Money by hand, and arithmetic against the counter that torch has."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from sift_rag.cases import Reply
from sift_rag.costs import Prices
from sift_rag.generation import LanguageModel
from sift_rag.sizes import ModelSize, flops, reading, training

SEEN = ModelSize(parameters=28_960, layers=2, width=32)  # of conftest's Llama
SIZE = ModelSize(parameters=1_000_000, layers=4, width=64)


def reply(seconds: float | None = None, **tokens: int) -> Reply:
    kinds = {"read": "in", "out": "out", "trained": "trained"}
    return Reply(
        text="x",
        seconds={} if seconds is None else {"total": seconds},
        tokens={kinds[name]: count for name, count in tokens.items()},
    )


def test_money_is_tokens_and_time_by_their_prices() -> None:
    prices = Prices(input=2.0, output=8.0, trained=1.0, hour=3.6, currency="EUR")
    one = reply(10.0, read=1_000, out=100, trained=6_000)
    assert prices.of(one) == pytest.approx(0.002 + 0.0008 + 0.006 + 0.01)
    assert Prices(hour=3.6).of(reply(10.0)) == pytest.approx(0.01)
    assert Prices(input=2.0, trained=9.0).of(reply(read=500, out=1)) == pytest.approx(0.001)
    assert Prices(trained=9.0).of(reply(read=500)) == 0.0


@pytest.mark.parametrize(
    ("prices", "one"),
    [
        (Prices(), reply(10.0, read=1_000)),
        (Prices(hour=1.0), reply(read=1_000)),
        (Prices(input=1.0), reply(10.0)),
        (Prices(input=1.0, output=1.0), reply(10.0, read=1_000)),  # half a sum would mislead
        (Prices(trained=1.0), reply(10.0)),
    ],
)
def test_what_cannot_be_counted_has_no_price(prices: Prices, one: Reply) -> None:
    assert prices.of(one) is None


@pytest.mark.parametrize("price", [-0.1, math.inf, math.nan, "2", None, True])
@pytest.mark.parametrize("name", ["input", "output", "trained", "hour"])
def test_a_price_that_is_none_is_refused(name: str, price: Any) -> None:
    with pytest.raises(ValueError, match=f"The price '{name}' is .*; it must be a number, 0 or"):
        Prices(**{name: price})


def test_reading_is_the_formula_of_kaplan() -> None:
    per_token = 2 * 1_000_000 + 2 * 4 * 300 * 64  # C_forward = 2 N + 2 n_layer n_ctx d_attn
    assert reading(SIZE, 300) == 300 * per_token
    assert flops(SIZE, prompt=280, written=20, trained=0, window=1024) == 300 * per_token


@given(st.integers(0, 2_000), st.integers(0, 200), st.integers(1, 512))
def test_reading_adds_up_token_by_token(prompt: int, written: int, window: int) -> None:
    each = sum(2 * SIZE.parameters + 4 * SIZE.layers * SIZE.width * i for i in range(1, prompt + 1))
    assert reading(SIZE, prompt) == pytest.approx(each, rel=1e-3, abs=1)
    whole = flops(SIZE, prompt=prompt, written=written, trained=0, window=window)
    assert whole == flops(SIZE, prompt=prompt + written, written=0, trained=0, window=window)
    assert training(SIZE, prompt, window) <= 2 * reading(SIZE, prompt)


def test_training_is_forward_and_back_within_windows() -> None:
    assert training(SIZE, 1_000, 300) == 2 * (3 * reading(SIZE, 300) + reading(SIZE, 100))
    assert training(SIZE, 0, 300) == 0


def counted(model: Any, tokens: int, *, back: bool) -> int:
    """Operations by torch's own counter, of the frozen model with attention written out."""
    model.set_attn_implementation("eager")
    model.requires_grad_(False)
    texts = torch.zeros(1, tokens, SEEN.width, requires_grad=back)  # (1, T, D)
    with FlopCounterMode(display=False) as counter:
        logits = model(inputs_embeds=texts, use_cache=False).logits
        if back:
            logits.sum().backward()
    return int(counter.get_total_flops())


def test_the_estimate_is_what_torch_counts(model: Any, tokenizer: Any) -> None:
    """torch counts the masked half of attention too, which is as much again as the other."""
    assert LanguageModel(model, tokenizer).size() == SEEN
    for tokens in (16, 250):
        attention = 2 * SEEN.layers * SEEN.width * tokens**2
        read = counted(model, tokens, back=False)
        assert reading(SEEN, tokens) + attention == pytest.approx(read, rel=0.01)
        trained = counted(model, tokens, back=True)
        assert training(SEEN, tokens, 1024) == pytest.approx(trained - 4 * attention, rel=0.01)
