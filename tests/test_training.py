"""Test-time training: settings, windows, the loop against one written by hand, and its brakes."""

import copy
import json
import math
import pickle
import time
from dataclasses import asdict, replace
from typing import Any, ClassVar

import pytest
import torch
from conftest import CONFIGS, build
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sift_rag.adapters import Adapter
from sift_rag.lessons import Example, windows
from sift_rag.training import TrainingConfig, TrainingReport, train

CONFIG = TrainingConfig(rank=4, alpha=8, learning_rate=1e-2, epochs=2, window=256)
TEXTS = [list(b"The pump in Oslo weighs 31 kg."), list(b"Ada looks after the crane.")]


def run(model: Any, config: TrainingConfig = CONFIG, **more: Any) -> TrainingReport:
    adapter = Adapter(model, config.rank, config.target_modules)
    with adapter.attached():
        return train(model, adapter, more.pop("texts", TEXTS), config, **more)


class TestConfig:
    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"rank": 0}, "rank is 0; it must be a whole number of at least 1"),
            ({"rank": 2.0}, "rank is 2.0"),
            ({"epochs": True}, "epochs is True"),
            ({"steps": 0}, "steps is 0"),
            ({"window": 1}, "window is 1; it must be a whole number of at least 2"),
            ({"seed": -1}, "seed is -1"),
            ({"alpha": 0}, "alpha is 0; it must be above 0"),
            ({"learning_rate": float("nan")}, "learning_rate is nan"),
            ({"learning_rate": 2.0}, "learning_rate is 2.0; it must be above 0 and at most 1"),
            ({"max_grad_norm": math.inf}, "max_grad_norm is inf"),
            ({"learning_rate": "1e-3"}, "learning_rate is '1e-3'"),
        ],
    )
    def test_a_wrong_value_is_named_with_what_is_allowed(
        self, setting: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            TrainingConfig(**setting)

    @pytest.mark.parametrize("targets", [(), 3, [1], {"q_proj": 1}])
    def test_targets_are_names(self, targets: Any) -> None:
        with pytest.raises(TypeError, match="target_modules is"):
            TrainingConfig(target_modules=targets)

    def test_canaries_are_texts(self) -> None:
        assert TrainingConfig(canary="Say this.").canary == ("Say this.",)
        with pytest.raises(TypeError, match="canary is 3; it must be a text or a list of texts"):
            TrainingConfig(canary=3)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="canary holds an empty text"):
            TrainingConfig(canary=("a", " "))

    def test_a_fallback_is_a_way_to_answer_without_training(self) -> None:
        said = "fallback is 'train'; it must be one of stuff, closed_book"
        with pytest.raises(ValueError, match=said):
            TrainingConfig(fallback="train")  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "config", [TrainingConfig(), replace(CONFIG, steps=7, target_modules=("q_proj", "v_proj"))]
    )
    def test_it_survives_json_and_pickle(self, config: TrainingConfig) -> None:
        assert TrainingConfig(**json.loads(json.dumps(asdict(config)))) == config
        assert pickle.loads(pickle.dumps(config)) == config
        assert hash(config) == hash(replace(config))


@given(st.lists(st.lists(st.integers(0, 9), max_size=40), max_size=4), st.integers(2, 12))
def test_windows_predict_each_token_once_and_in_order(texts: list[list[int]], size: int) -> None:
    pieces = windows(texts, size)
    assert all(2 <= len(piece.ids) <= size for piece in pieces)
    predicted = [token for piece in pieces for token in piece.ids[1:]]
    assert predicted == [token for text in texts for token in text[1:]]


class ByHand(nn.Module):
    """LoRA as in the paper (arXiv 2106.09685): W x + (alpha / r) B A x."""

    def __init__(self, base: nn.Linear, a: Tensor, scaling: float) -> None:
        super().__init__()
        self.base, self.scaling = base, scaling
        self.a = nn.Parameter(a.clone())
        self.b = nn.Parameter(torch.zeros(base.out_features, len(a)))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.base(x) + self.scaling * (x @ self.a.T @ self.b.T)
        return out


def by_hand(model: Any, a: list[Tensor]) -> list[float]:
    """The losses of CONFIG, step by step in plain PyTorch, one parameter a tensor."""
    model.requires_grad_(False)
    lora: list[ByHand] = []
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear) and layer is not model.get_output_embeddings():
                lora.append(ByHand(layer, a[len(lora)], CONFIG.alpha / CONFIG.rank))
                setattr(parent, name, lora[-1])
    weights = [weight for layer in lora for weight in (layer.a, layer.b)]
    adam = torch.optim.Adam(weights, lr=CONFIG.learning_rate)
    losses = []
    for text in TEXTS * CONFIG.epochs:
        ids = torch.tensor([text])
        loss: Any = F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:])
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, CONFIG.max_grad_norm)
        adam.step()
        losses.append(loss.item())
    return losses


def test_losses_are_those_of_the_same_training_by_hand(model: Any) -> None:
    plain = copy.deepcopy(model)
    adapter = Adapter(model, CONFIG.rank, "all-linear")
    with adapter.attached():
        report = train(model, adapter, TEXTS, CONFIG)
        adapter.reset(seed=CONFIG.seed, alpha=CONFIG.alpha)
        a = [w.detach() for name, w in model.named_parameters() if "lora_A" in name]
    assert report.losses == pytest.approx(by_hand(plain, a), rel=1e-4)


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_loss_falls_and_the_model_stays(architecture: str) -> None:
    model = build(architecture)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    random = torch.get_rng_state()
    report = run(model, replace(CONFIG, epochs=6))
    assert report.stopped == "completed"
    assert report.adapter_used
    assert sum(report.losses[-2:]) < 0.9 * sum(report.losses[:2])
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert all(w.grad is None and w.requires_grad for w in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_16_bit_model_learns_too(model: Any) -> None:
    report = run(model.to(torch.bfloat16), replace(CONFIG, epochs=6))
    assert report.stopped == "completed"
    assert sum(report.losses[-2:]) < 0.9 * sum(report.losses[:2])


def test_the_same_call_gives_the_same_losses_whatever_came_before(model: Any) -> None:
    adapter = Adapter(model, CONFIG.rank, "all-linear")
    with adapter.attached():
        first = train(model, adapter, TEXTS, CONFIG).losses
        torch.rand(3)
        other = train(model, adapter, TEXTS[::-1], replace(CONFIG, seed=5, alpha=1)).losses
        assert train(model, adapter, TEXTS, CONFIG).losses == first
    assert other != first
    assert run(model).losses == first  # with a new adapter too


def test_steps_count_and_repeats_are_steps(model: Any) -> None:
    assert run(model).steps == 4
    told: list[dict[str, Any]] = []
    report = run(model, replace(CONFIG, steps=5), on_step=told.append)
    assert report.steps == len(report.losses) == 5
    assert [step["tokens"] for step in told] == [30, 26, 30, 26, 30]
    assert [(step["step"], step["steps"]) for step in told] == [(n, 5) for n in range(1, 6)]
    assert tuple(step["loss"] for step in told) == report.losses
    assert report.tokens == 142
    assert 0 < report.reset_seconds < 1
    assert report.seconds == pytest.approx(sum(step["seconds"] for step in told))
    twice = run(model, replace(CONFIG, epochs=1), texts=[TEXTS[0], TEXTS[0]])
    assert twice.steps == 2
    assert twice.losses[1] < twice.losses[0]


def test_a_long_text_is_cut_into_steps_of_one_window(model: Any) -> None:
    report = run(model, replace(CONFIG, epochs=1, window=100), texts=[list(range(250))])
    assert report.steps == 3
    assert report.tokens == 250 + 2  # two windows begin with the last token of the one before


def test_nothing_to_learn_is_an_error(model: Any) -> None:
    with pytest.raises(ValueError, match="no text to train on"):
        run(model, texts=[[], [5]])


@pytest.mark.parametrize("reason", ["cancelled", "callback"])
def test_it_can_be_stopped_between_steps(model: Any, reason: Any) -> None:
    done: list[object] = []
    report = run(model, on_step=done.append, interrupted=lambda: reason if len(done) == 2 else None)
    assert (report.stopped, report.steps) == (reason, 2)
    assert report.adapter_used == (reason == "callback")


def test_a_loss_that_is_no_number_ends_it(model: Any) -> None:
    model.model.norm.weight.data[0] = math.nan
    report = run(model)
    assert (report.stopped, report.steps, report.adapter_used) == ("non_finite", 0, False)
    assert math.isnan(report.losses[0])


def test_a_gradient_that_is_no_number_ends_it(model: Any) -> None:
    # A finite loss with an infinite gradient, as 16-bit models have it when something overflows.
    layer = model.model.layers[0].mlp.down_proj
    layer.register_full_backward_hook(lambda *_: (torch.full((1, 30, 64), math.inf),))
    report = run(model, texts=TEXTS[:1])
    assert (report.stopped, report.steps, report.adapter_used) == ("non_finite", 0, False)
    assert math.isfinite(report.losses[0])


def test_an_adapter_that_breaks_the_model_is_given_up(model: Any) -> None:
    model.lm_head.weight.data *= 2
    report = run(model, replace(CONFIG, learning_rate=1.0, alpha=1000, epochs=9))
    assert (report.stopped, report.adapter_used) == ("diverged", False)
    assert report.losses[-1] > report.losses[0] + 1
    assert report.steps == len(report.losses) - 1 < 18


def test_a_text_that_is_stranger_than_the_first_is_trained_on(model: Any) -> None:
    """A high loss is no sign of a broken adapter where the base has it too."""
    model.lm_head.weight.data *= 4

    def base(text: list[int]) -> float:
        with torch.no_grad():
            ids = torch.tensor([text])
            return F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:]).item()

    texts = sorted(([token] * 5 for token in range(99)), key=base)
    easy, strange = texts[0], texts[-1]
    assert base(strange) > base(easy) + 2
    report = run(model, replace(CONFIG, learning_rate=1e-3), texts=[easy, strange])
    assert report.stopped == "completed"
    assert report.losses[1] > report.losses[0] + 2
    assert report.losses[3] < report.losses[1]


class TestProbes:
    """What is not trained on tells whether the training did harm."""

    LONG = replace(CONFIG, epochs=12)
    AAA: ClassVar = [list(b"a" * 40)]
    AB: ClassVar = [Example(tuple(b"ab"))]  # the more "aa" is learnt, the less likely
    PROBES: ClassVar = {"question": [Example(tuple(b"Where is the crane?"))]}

    def test_they_are_measured_before_and_after(self) -> None:
        model = build()
        report = run(model, probes=self.PROBES)
        before, after = report.probes["question"]
        ids = torch.tensor([list(b"Where is the crane?")])
        with torch.no_grad():
            base = F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:]).item()
        assert before == pytest.approx(base, abs=1e-6)
        assert after is not None
        assert after < before  # letters of English are likelier now
        assert (report.stopped, report.adapter_used) == ("completed", True)

    def test_where_they_get_worse_the_adapter_is_not_used(self) -> None:
        report = run(build(), self.LONG, texts=self.AAA, probes={"question": self.AB})
        before, after = report.probes["question"]
        assert after is not None
        assert after > before
        assert (report.stopped, report.adapter_used) == ("worse", False)
        assert report.steps == len(report.losses) == 12
        blind = replace(self.LONG, guard=None)
        unguarded = run(build(), blind, texts=self.AAA, probes={"question": self.AB})
        assert (unguarded.stopped, unguarded.adapter_used) == ("completed", True)

    def test_looking_changes_nothing(self) -> None:
        assert run(build(), probes=self.PROBES).losses == run(build()).losses


class TestBudget:
    def test_no_step_is_begun_after_the_time(self) -> None:
        endless = replace(CONFIG, steps=10**6, max_seconds=0.3)
        began = time.perf_counter()
        report = run(build(), endless)
        assert time.perf_counter() - began < 5
        assert report.stopped == "time"
        assert report.adapter_used
        assert 0 < report.steps < 10**6

    def test_without_any_time_nothing_is_learnt(self) -> None:
        report = run(build(), replace(CONFIG, max_seconds=1e-9))
        assert (report.stopped, report.steps, report.adapter_used) == ("time", 0, False)

    def test_a_pass_that_makes_things_worse_is_taken_back(self) -> None:
        early = replace(CONFIG, epochs=99, early_stop=True, guard=None)
        model = build()
        adapter = Adapter(model, CONFIG.rank, CONFIG.target_modules)
        with adapter.attached():
            report = train(
                model, adapter, TestProbes.AAA, early, probes={"held_out": TestProbes.AB}
            )
            kept = adapter.weights.detach().clone()
            train(model, adapter, TestProbes.AAA, replace(CONFIG, steps=report.steps - 1))
        assert report.stopped == "early"
        assert 1 < report.steps < 99
        assert torch.equal(kept, adapter.weights)

    def test_passes_that_help_go_on(self) -> None:
        probes = {"held_out": [Example(tuple(b"The pump in Oslo"))]}
        report = run(build(), replace(CONFIG, early_stop=True), probes=probes)
        assert report.stopped == "completed"


class TestExamples:
    def test_only_what_is_predicted_has_a_loss(self) -> None:
        ids, model = tuple(b"Who? Ada"), build()
        report = run(model, replace(CONFIG, steps=1), texts=[Example(ids, 5)])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, 4:-1]
        wanted = F.cross_entropy(logits, torch.tensor(ids[5:])).item()
        assert report.losses[0] == pytest.approx(wanted, abs=1e-6)

    def test_weights_weigh(self) -> None:
        ids, model = tuple(b"Oslo"), build()
        report = run(model, replace(CONFIG, steps=1), texts=[Example(ids, 1, (0.0, 3.0, 1.0))])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1]
        nats = F.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
        assert report.losses[0] == pytest.approx((0.75 * nats[1] + 0.25 * nats[2]).item(), abs=1e-6)

    def test_a_distilled_answer_is_what_the_base_predicts_with_the_passage(self) -> None:
        """Kullback-Leibler's divergence by hand, and it falls."""
        model = build()
        teacher, asked, answer = b"Ada runs it. Who?", b"Who?", b" Ada"
        example = Example(tuple(asked + answer), len(asked), teacher=tuple(teacher))
        report = run(model, replace(CONFIG, steps=20), texts=[example])

        def predicted(before: bytes) -> Tensor:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([list(before + answer)])).logits
            return F.log_softmax(logits[0, len(before) - 1 : -1], -1)

        with_passage, without = predicted(teacher), predicted(asked)
        wanted = (with_passage.exp() * (with_passage - without)).sum(-1).mean()
        assert report.losses[0] == pytest.approx(wanted.item(), rel=1e-4)
        assert report.losses[-1] < 0.5 * report.losses[0]
