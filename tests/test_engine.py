"""The engine: four ways to answer, nothing left behind, and every way to leave a call."""

import asyncio
import gc
import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from conftest import CONFIGS, CONTEXT, TRAINING, build

from sift_rag import tiny
from sift_rag.documents import Document
from sift_rag.engine import Answer, Cancelled, Engine, Mode, Options, Score
from sift_rag.events import Callback, Control, Event
from sift_rag.prompting import PromptTemplate
from sift_rag.worker import background

A = ("Where is the pump?", ["The pump Zorb is in Oslo.", "Ada looks after the pump Zorb."])
B = ("Who runs the crane?", ["The crane Mib is run by Tom.", "The crane Mib is red.", "It is 3."])
MODES: tuple[Mode, ...] = ("closed_book", "stuff", "train", "both")
ENDLESS = replace(TRAINING, steps=10**9)


def make(tokenizer: Any, architecture: str = "llama", **more: Any) -> Engine:
    settings: dict[str, Any] = {"training": TRAINING, "max_new_tokens": 8} | more
    return Engine(build(architecture), tokenizer, **settings)


def trace(engine: Engine, mode: Mode) -> tuple[Any, ...]:
    """All that an answer and a score to B show of the model; equal only if it is the same bits."""
    answer, score = engine.answer(*B, mode=mode), engine.score(B[0], "Tom", B[1], mode=mode)
    reports = [x.training.losses if x.training else () for x in (answer, score)]
    return answer.text, score.nats, *reports


@pytest.fixture(scope="module")
def fresh(tokenizer: Any) -> Callable[[str], list[tuple[Any, ...]]]:
    """The traces of B in all modes, each from an engine that has seen nothing else."""
    found: dict[str, list[tuple[Any, ...]]] = {}

    def traces(architecture: str = "llama") -> list[tuple[Any, ...]]:
        if architecture not in found:
            found[architecture] = []
            for mode in MODES:
                with make(tokenizer, architecture) as engine:
                    found[architecture].append(trace(engine, mode))
        return found[architecture]

    return traces


@pytest.fixture
def untouched(engine: Engine, fresh: Any) -> Iterator[None]:
    """After the test: the model is bit for bit what it was, and so is everything around it."""
    model = engine._answerer.lm.model
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    flags = [weight.requires_grad for weight in model.parameters()]
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    yield
    assert engine.answer(*A, mode="stuff").text is not None  # the engine still answers
    state = model.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weight) for name, weight in weights.items())
    assert [weight.requires_grad for weight in model.parameters()] == flags
    assert [module.training for module in model.modules()] == modes
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    for mode in ("stuff", "train"):
        with torch.random.fork_rng(devices=[]):
            found = engine.score(B[0], "Tom", B[1], mode=mode, training=TRAINING)
        assert found.nats == fresh()[MODES.index(mode)][1]


class Events(Callback):
    """Keeps what it is told; does `act` at one hook."""

    def __init__(self, hook: str = "", act: Callable[[Control], object] = lambda _: None) -> None:
        self.told: list[dict[str, Any]] = []
        self._hook, self._act = hook, act

    def _tell(self, event: dict[str, Any], control: Control) -> None:
        self.told.append(event)
        if event["event"] == self._hook:
            self._act(control)

    on_train_start = on_train_step = on_train_end = on_token = on_answer = _tell


class Oops(Exception):
    pass


def oops(_: Control) -> None:
    raise Oops


class TestAnswers:
    @pytest.mark.parametrize("architecture", CONFIGS)
    def test_every_architecture_in_every_mode_after_other_questions(
        self, architecture: str, tokenizer: Any, fresh: Any
    ) -> None:
        with make(tokenizer, architecture) as engine:
            for mode in MODES:
                engine.answer(*A, mode=mode)
            assert [trace(engine, mode) for mode in MODES] == fresh(architecture)
        assert len(set(fresh(architecture))) == len(MODES)  # each mode is another one

    def test_a_small_real_model(self, data: Any) -> None:
        folder = data / "lm" / "stories260K"
        with Engine.from_pretrained(folder, device="cpu", training=TRAINING) as engine:
            story = ["Mia had a red car. Her car was very fast. Mia loved her red car."]
            question, reference = "What did Mia have?", "Mia had a red car."
            scores = {
                mode: engine.score(question, reference, story, mode=mode).bits_per_byte
                for mode in MODES
            }
        assert max(scores["stuff"], scores["train"], scores["both"]) < scores["closed_book"]

    @pytest.mark.parametrize("mode", MODES)
    def test_what_an_answer_says(self, engine: Engine, mode: Mode) -> None:
        documents = [Document(text, id=text[:3]) for text in A[1]]
        answer = engine.answer(A[0], documents, mode=mode)
        assert (answer.mode, answer.question) == (mode, A[0])
        assert answer.text == answer.text.strip()
        assert answer.documents == (() if mode == "closed_book" else tuple(documents))
        assert answer.left_out == ()
        assert answer.note == ""
        assert answer.finish_reason in ("stop", "length")
        assert answer.timings.keys() == {"queue", "train", "prompt", "prefill", "decode", "total"}
        parts = [seconds for stage, seconds in answer.timings.items() if stage != "total"]
        assert 0 < sum(parts) <= answer.timings["total"] < 60
        assert answer.usage["prompt_tokens"] > len(A[0])
        assert 1 <= answer.usage["completion_tokens"] <= 8
        if mode in ("train", "both"):
            assert answer.training is not None
            assert answer.training.adapter_used
            assert answer.training.steps == 4
            assert answer.usage["training_tokens"] == 2 * sum(len(t) + 2 for t in A[1])
        else:
            assert answer.training is None
            assert answer.usage["training_tokens"] == 0
        assert pickle.loads(pickle.dumps(answer)) == answer
        assert json.loads(json.dumps(asdict(answer)))["text"] == answer.text

    def test_the_prompt_is_the_templates(self, tokenizer: Any, engine: Engine) -> None:
        with make(tokenizer, template=PromptTemplate(closed_book="{question}")) as other:
            short = other.answer("Who?", mode="closed_book").usage["prompt_tokens"]
        assert short == 1 + len("Who?")
        stuffed = engine.answer("Who?", ["ab", "cd"]).usage["prompt_tokens"]
        assert stuffed == 1 + len("ab\n\ncd\n\nQuestion: Who?\nAnswer:")
        trained = engine.answer("Who?", ["ab", "cd"], mode="train").usage["prompt_tokens"]
        assert trained == 1 + len("Question: Who?\nAnswer:")

    def test_what_does_not_fit_is_left_out_of_the_prompt_and_said(self, engine: Engine) -> None:
        room = CONTEXT - 8 - 1 - len("Question: Who?\nAnswer:")
        short, fits, long = "short", "y" * (room - 2 - 7), "x" * room
        answer = engine.answer("Who?", [long, fits, short])
        assert [document.text for document in answer.documents] == [fits, short]
        assert [document.text for document in answer.left_out] == [long]
        assert answer.usage["prompt_tokens"] == CONTEXT - 8
        both = engine.answer("Who?", [long, fits, short], mode="both")
        assert [document.text for document in both.documents] == [long, fits, short]
        assert both.left_out == answer.left_out

    @pytest.mark.parametrize("order", ["best_first", "best_last", "edges"])
    def test_the_order_of_passages_matters_to_the_prompt(self, engine: Engine, order: Any) -> None:
        by_order = {
            order: engine.score("Who?", "Tom", ["ab", "cd", "ef"], order=order).nats
            for order in ("best_first", "best_last", "edges")
        }
        assert len(set(by_order.values())) == 3
        assert by_order[order] == engine.score("Who?", "Tom", ["ab", "cd", "ef"], order=order).nats

    def test_a_long_document_is_trained_on_in_windows(self, engine: Engine) -> None:
        answer = engine.answer("Who?", ["z" * 1000], mode="train")
        assert answer.training is not None
        assert answer.training.steps == 2 * 4  # 1,002 tokens in a context of 256, twice
        assert answer.training.tokens == 2 * (1002 + 3)

    def test_a_document_of_ten_megabytes(self, engine: Engine) -> None:
        huge = "The pump is in Oslo. " * 500_000
        config = replace(TRAINING, steps=2)
        answer = engine.answer("Who?", [huge, "Tom"], mode="both", training=config)
        assert [len(document.text) for document in answer.left_out] == [len(huge)]
        assert answer.training is not None
        assert answer.training.steps == 2

    def test_a_document_of_one_character(self, engine: Engine) -> None:
        for mode in MODES:
            assert engine.answer("Who?", ["x"], mode=mode).text is not None

    def test_the_order_of_selection_is_the_order_of_training(self, engine: Engine) -> None:
        def losses(documents: list[str]) -> tuple[float, ...]:
            report = engine.answer("Who?", documents, mode="train").training
            assert report is not None
            return report.losses

        ab, ba, aa = losses(["a", "bb"]), losses(["bb", "a"]), losses(["a", "a"])
        assert ab[0] == aa[0] != ba[0]
        assert len(aa) == 4


class TestOwnWords:
    """The prompt is the caller's; documents are what is trained on."""

    def test_the_same_words_give_the_same_answer_and_score(self, engine: Engine) -> None:
        stuffed = PromptTemplate().render(A[0], A[1])
        words_of: dict[Mode, str] = {"stuff": stuffed, "train": PromptTemplate().render(A[0])}
        for mode, words in words_of.items():
            own = engine.answer(*A, mode=mode, prompt=words)
            assert own.text == engine.answer(*A, mode=mode).text
            assert own.documents == engine.answer(*A, mode=mode).documents
            score = engine.score(A[0], "Oslo", A[1], mode=mode, prompt=words)
            assert score.nats == engine.score(A[0], "Oslo", A[1], mode=mode).nats
        assert engine.answer(A[0], prompt=stuffed).text == engine.answer(*A).text

    def test_turns_of_a_chat(self, engine: Engine) -> None:
        turns = [{"role": "user", "content": "Where is"}, {"role": "user", "content": "the pump?"}]
        told = engine.answer("x", mode="closed_book", prompt=turns)
        assert (
            told.text == engine.answer("x", mode="closed_book", prompt="Where is\n\nthe pump?").text
        )

    def test_after_broken_training_come_the_words_for_that(self, engine: Engine) -> None:
        head = engine._answerer.lm.model.lm_head.weight.data
        head *= 4
        texts = ["a" * 19, "bcdefghijklmn 0123456"]
        wild = replace(TRAINING, learning_rate=0.1, alpha=1e6, epochs=9)
        options: Options = {"training": wild, "prompt": "Where?"}
        bare = engine.answer("x", texts, mode="train", **options)
        options["fallback_prompt"] = "In Oslo. Where?"
        own = engine.answer("x", texts, mode="train", **options)
        plain = [
            engine.answer("x", mode="closed_book", prompt=words).text
            for words in ("Where?", "In Oslo. Where?")
        ]
        head /= 4
        assert [bare.text, own.text] == plain
        assert "Training was undone" in own.note
        assert [len(answer.documents) for answer in (bare, own)] == [0, 2]

    def test_it_ends_at_a_stop_string(self, engine: Engine) -> None:
        whole = engine.answer(*A).text
        assert engine.answer(*A, stop=[whole[2]]).text == whole[: whole.index(whole[2])].rstrip()

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"prompt": " "}, ValueError, "The prompt is empty"),
            ({"prompt": []}, ValueError, "The prompt has no turns"),
            ({"prompt": [{"role": "user"}]}, TypeError, "must have a role and a content"),
            ({"prompt": "x" * 400}, ValueError, r"takes 401 tokens .* leaves room for 248"),
            ({"fallback_prompt": ""}, ValueError, "The fallback_prompt is empty"),
            ({"stop": "x"}, TypeError, "stop is 'x'; it must be a list of strings"),
            ({"stop": [""]}, ValueError, "stop holds an empty string"),
        ],
    )
    def test_bad_words(
        self, engine: Engine, options: Any, error: type[Exception], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            engine.answer(*A, **options)


class TestScores:
    def test_a_score_counts_what_it_scored(self, engine: Engine) -> None:
        score = engine.score("Who?", "Zoë", mode="closed_book")
        assert (score.tokens, score.bytes) == (5, 4)  # the space before it is a token, not its own
        assert score.bits_per_byte == pytest.approx(score.nats / 0.6931471805599453 / 4)
        assert score.training is None
        assert pickle.loads(pickle.dumps(score)) == score

    def test_training_on_the_reference_makes_it_likelier(self, engine: Engine) -> None:
        def nats(mode: Mode) -> float:
            config = replace(TRAINING, epochs=10)
            return engine.score(A[0], A[1][0], A[1], mode=mode, training=config).nats

        assert nats("train") < 0.9 * nats("closed_book")

    def test_passages_give_way_to_the_reference(self, engine: Engine) -> None:
        whole = engine.score("Who?", "y" * 150, ["x" * 150], mode="stuff")
        assert whole.nats == engine.score("Who?", "y" * 150, mode="closed_book").nats

    def test_a_reference_that_does_not_fit_is_refused(self, engine: Engine) -> None:
        with pytest.raises(ValueError, match="The reference has 301 tokens and the model's"):
            engine.score("Who?", "y" * 300, mode="closed_book")
        with pytest.raises(ValueError, match="The question takes"):
            engine.score("Who?", "y" * 240, mode="closed_book")


class TestBadInput:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            ({"question": ""}, "The question is empty"),
            ({"question": " \n"}, "The question is empty"),
            ({"question": "\ud800"}, "The question holds a lone surrogate"),
            ({"mode": "closed-book"}, "mode is 'closed-book'; it must be one of closed_book, st"),
            ({"documents": []}, "The mode 'stuff' needs documents and there are none"),
            ({"documents": [], "mode": "train"}, "The mode 'train' needs documents"),
            ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be 1 to 255"),
            ({"max_new_tokens": CONTEXT}, "max_new_tokens is 256; it must be 1 to 255"),
            ({"order": "random"}, "order is 'random'; it must be one of best_first"),
            ({"question": "x" * 300}, "The question takes .* tokens and the model leaves room"),
        ],
    )
    def test_a_wrong_value_is_named(
        self, engine: Engine, call: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            engine.answer(**{"question": A[0], "documents": A[1]} | call)

    def test_a_wrong_type_is_named(self, engine: Engine) -> None:
        wrong: Any = engine.answer
        with pytest.raises(TypeError, match="must come as a list, got a single str"):
            wrong("Who?", "a document")
        with pytest.raises(TypeError, match="The question must be a string, got int"):
            wrong(3)
        with pytest.raises(TypeError, match="There is no option 'temperature'; there are train"):
            wrong("Who?", ["a"], temperature=1)
        with pytest.raises(ValueError, match="The reference is empty"):
            engine.score("Who?", "", mode="closed_book")

    def test_documents_that_hold_nothing(self, engine: Engine, untouched: None) -> None:
        assert engine.answer("Who?", [""], mode="train").training is not None  # BOS, then EOS

    def test_an_engine_is_not_pickled(self, engine: Engine) -> None:
        with pytest.raises(TypeError, match="cannot be pickled: make one in each process"):
            pickle.dumps(engine)

    def test_a_closed_engine_says_so(self, engine: Engine) -> None:
        engine.close()
        engine.close()
        with pytest.raises(RuntimeError, match="This Engine is closed"):
            engine.answer("Who?", mode="closed_book")

    def test_a_model_of_another_kind_is_refused(self, tokenizer: Any) -> None:
        from transformers import BertConfig, BertModel

        bert: Any = BertModel
        other = bert(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
        with pytest.raises(ValueError, match="no causal language model but 'bert'"):
            Engine(other, tokenizer)


@pytest.mark.usefixtures("untouched")
class TestNothingIsLeft:
    @pytest.mark.parametrize(
        "hook", ["on_train_start", "on_train_step", "on_train_end", "on_token", "on_answer"]
    )
    def test_after_a_callback_that_raises(self, engine: Engine, hook: str) -> None:
        with pytest.raises(Oops):
            engine.answer(*A, mode="both", callbacks=[Events(hook, oops)])

    @pytest.mark.parametrize("where", ["on_train_step", "on_token"])
    def test_after_a_cancel(self, engine: Engine, where: str) -> None:
        cancel = threading.Event()
        events = Events(where, lambda _: cancel.set())
        with pytest.raises(Cancelled):
            engine.answer(*A, mode="both", cancel=cancel, callbacks=[events])
        at = [event["event"] for event in events.told].index(where)
        assert len(events.told) <= at + 2  # at most the end of the training is told after it

    def test_after_an_abandoned_stream(self, engine: Engine) -> None:
        stream = engine.stream(*A, mode="both", max_new_tokens=100)
        next(stream)
        del stream
        began = time.perf_counter()
        engine.answer(*A, mode="closed_book")
        assert time.perf_counter() - began < 5

    def test_after_a_stream_that_was_dropped_in_training(self, engine: Engine) -> None:
        trained = threading.Event()
        events = Events("on_train_step", lambda _: trained.set())
        stream = engine.stream(*A, mode="train", training=ENDLESS, callbacks=[events])
        assert trained.wait(10)  # it began at the call, without a piece being asked for
        del stream

    def test_after_broken_training(self, engine: Engine) -> None:
        head = engine._answerer.lm.model.lm_head.weight.data
        head *= 4
        texts = ["a" * 19, "bcdefghijklmn 0123456"]
        wild = replace(TRAINING, learning_rate=0.1, alpha=1e6, epochs=9)
        answer = engine.answer(A[0], texts, mode="train", training=wild)
        stuffed = engine.answer(A[0], texts, mode="stuff")
        head /= 4
        assert answer.training is not None
        assert (answer.training.stopped, answer.training.adapter_used) == ("diverged", False)
        assert "Training was undone" in answer.note
        assert "comes from the passages in the prompt" in answer.note
        assert answer.documents == stuffed.documents
        assert (answer.text, answer.mode) == (stuffed.text, "train")

    def test_after_eight_threads_at_once(self, engine: Engine, fresh: Any) -> None:
        jobs = [(mode, n) for n in range(4) for mode in MODES]

        def ask(job: tuple[Mode, int]) -> tuple[Mode, float, str]:
            mode, n = job
            question, documents = (A, B)[n % 2]
            config = replace(TRAINING, rank=2 + n)
            engine.answer(question, documents, mode=mode, training=config)
            return mode, engine.score(B[0], "Tom", B[1], mode=mode, training=TRAINING).nats, ""

        with ThreadPoolExecutor(8) as pool:
            for mode, nats, _ in pool.map(ask, jobs):
                assert nats == fresh()[MODES.index(mode)][1]

    def test_in_a_model_that_was_half_in_training(self, engine: Engine, fresh: Any) -> None:
        model: Any = engine._answerer.lm.model
        model.train()
        model.lm_head.requires_grad_(False)
        found = [trace(engine, mode) for mode in MODES]
        assert found == fresh()
        assert model.training
        assert not model.lm_head.weight.requires_grad
        model.eval()
        model.lm_head.requires_grad_(True)


class TestEvents:
    def test_they_come_in_order_as_plain_data(self, engine: Engine) -> None:
        events = Events()
        answer = engine.answer(*A, mode="both", callbacks=[events])
        names = [event["event"] for event in events.told]
        tokens = names.count("on_token")
        assert names == [
            "on_train_start",
            *["on_train_step"] * 4,
            "on_train_end",
            *["on_token"] * tokens,
            "on_answer",
        ]
        assert json.loads(json.dumps(events.told)) == events.told
        assert {event["schema"] for event in events.told} == {1}
        assert events.told[0]["config"]["rank"] == 4
        pieces = [event["text"] for event in events.told if event["event"] == "on_token"]
        assert "".join(pieces) == answer.text == events.told[-1]["text"]
        assert answer.training is not None
        assert events.told[5]["losses"] == list(answer.training.losses)

    def test_training_can_be_stopped_early_and_counts(self, engine: Engine) -> None:
        events = Events("on_train_step", Control.stop)
        answer = engine.answer(*A, mode="train", training=ENDLESS, callbacks=[events])
        assert answer.training is not None
        assert (answer.training.stopped, answer.training.steps) == ("callback", 1)
        assert answer.training.adapter_used
        assert answer.note == ""

    def test_training_can_be_stopped_before_it_begins(self, engine: Engine) -> None:
        events = Events("on_train_start", Control.stop)
        answer = engine.answer(*A, mode="train", callbacks=[events])
        assert answer.training is not None
        assert (answer.training.steps, answer.training.adapter_used) == (0, False)
        assert "stopped before its first step" in answer.note
        assert answer.text == engine.answer(A[0], mode="closed_book").text

    def test_the_settings_can_be_replaced_before_training(self, engine: Engine) -> None:
        def shorter(control: Control) -> None:
            control.training = replace(control.training, steps=1)

        answer = engine.answer(*A, mode="train", callbacks=[Events("on_train_start", shorter)])
        assert answer.training is not None
        assert answer.training.steps == 1

        def wrong(control: Control) -> None:
            control.training = {"steps": 1}

        with pytest.raises(TypeError, match=r"control.training is .*; it must be a TrainingConfig"):
            engine.answer(*A, mode="train", callbacks=[Events("on_train_start", wrong)])

    def test_settings_of_a_control_object_count(self, engine: Engine) -> None:
        control = Control(training=replace(TRAINING, steps=3))
        answer = engine.answer(*A, mode="train", control=control)
        assert answer.training is not None
        assert answer.training.steps == 3

    def test_a_callback_may_not_ask_its_own_engine(self, engine: Engine) -> None:
        events = Events("on_token", lambda _: engine.answer("Who?", mode="closed_book"))
        with pytest.raises(RuntimeError, match="wait for itself forever"):
            engine.answer(*A, callbacks=[events])


class TestWaiting:
    @pytest.mark.parametrize("mode", MODES)
    def test_pieces_together_are_the_answer(self, engine: Engine, mode: Mode) -> None:
        stream = engine.stream(*B, mode=mode)
        assert "".join(stream) == stream.answer.text == engine.answer(*B, mode=mode).text
        assert stream.answer.mode == mode

    def test_asyncio_is_not_blocked(self, engine: Engine) -> None:
        async def main() -> tuple[list[float], Answer, str, str]:
            gaps: list[float] = []

            async def heart() -> None:
                while True:
                    began = time.perf_counter()
                    await asyncio.sleep(0.005)
                    gaps.append(time.perf_counter() - began)

            beating = asyncio.create_task(heart())
            config = replace(TRAINING, steps=60)
            answer = await engine.aanswer(*B, mode="train", training=config)
            stream = engine.astream(*B, mode="both")
            pieces = [piece async for piece in stream]
            beating.cancel()
            return gaps, answer, "".join(pieces), (await stream.answer()).text

        gaps, answer, pieces, text = asyncio.run(main())
        assert answer.timings["train"] > 0.1
        assert len(gaps) > 10
        assert sorted(gaps)[len(gaps) // 2] < 0.1
        assert pieces == text

    def test_cancelling_a_task_in_training_frees_the_engine_within_a_step(
        self, engine: Engine, untouched: None
    ) -> None:
        async def main() -> float:
            stepped = threading.Event()
            events = Events("on_train_step", lambda _: stepped.set())
            task = asyncio.create_task(
                engine.aanswer(*A, mode="train", training=ENDLESS, callbacks=[events])
            )
            while not stepped.is_set():
                await asyncio.sleep(0.005)
            task.cancel()
            began = time.perf_counter()
            with pytest.raises(asyncio.CancelledError):
                await task
            await engine.aanswer("Who?", mode="closed_book", max_new_tokens=1)
            return time.perf_counter() - began

        assert asyncio.run(main()) < 2

    def test_many_tasks_at_once(self, engine: Engine, fresh: Any) -> None:
        async def main() -> list[Answer]:
            return await asyncio.gather(
                *(engine.aanswer(*B, mode=mode, training=TRAINING) for mode in MODES * 2)
            )

        assert [answer.text for answer in asyncio.run(main())] == [t[0] for t in fresh()] * 2

    def test_closing_ends_what_runs(self, engine: Engine) -> None:
        stream = engine.stream(*A, mode="train", training=ENDLESS)
        engine.close()
        with pytest.raises(Cancelled):
            list(stream)

    def test_an_engine_that_nobody_holds_goes_away(self, tokenizer: Any) -> None:
        before = threading.active_count()
        assert make(tokenizer).answer("Who?", mode="closed_book").text is not None
        gc.collect()
        deadline = time.perf_counter() + 10
        while threading.active_count() > before and time.perf_counter() < deadline:
            time.sleep(0.01)
        assert threading.active_count() == before


def test_memory_does_not_grow(engine: Engine) -> None:
    """The number of tensors, and their bytes, after 2 and after 5 rounds of all modes."""

    def tensors() -> tuple[int, int]:
        gc.collect()
        found = [item for item in gc.get_objects() if issubclass(type(item), torch.Tensor)]
        return len(found), sum(tensor.nbytes for tensor in found)

    def ask(rounds: int) -> tuple[int, int]:
        for _ in range(rounds):
            for mode in MODES:
                engine.answer(*A, mode=mode, max_new_tokens=3)
                with pytest.raises(Oops):
                    engine.answer(
                        *A,
                        mode=mode,
                        callbacks=[Events("on_train_end", oops), Events("on_token", oops)],
                    )
        return tensors()

    assert ask(2) == ask(3)


@pytest.mark.skipif(
    not (tiny.FOLDER / "model.safetensors").is_file(), reason="the bundled model is not there yet"
)
def test_the_bundled_model(capfd: pytest.CaptureFixture[str]) -> None:
    with Engine.tiny() as engine:
        answers = [engine.answer(*A, mode=mode) for mode in MODES]
        score = engine.score(A[0], "Oslo", A[1])
    assert isinstance(score, Score)
    for answer in answers:
        assert answer.text
        assert answer.training is None or answer.training.losses[-1] < answer.training.losses[0]
    assert capfd.readouterr() == ("", "")


def test_a_reference_is_scored_beside_the_answer(engine: Engine) -> None:
    for mode in MODES:
        plain = engine.answer("Who?", ["Tanaka."], mode=mode)
        answer = engine.answer("Who?", ["Tanaka."], mode=mode, reference="Tanaka")
        score = engine.score("Who?", "Tanaka", ["Tanaka."], mode=mode)
        assert plain.score is None
        assert answer.score is not None
        assert (answer.score.nats, answer.score.bytes) == (score.nats, score.bytes)
        assert (answer.text, answer.usage) == (plain.text, plain.usage)


def test_a_reference_without_room_is_said_and_the_answer_stands(engine: Engine) -> None:
    answer = engine.answer("Who?", mode="closed_book", reference="x" * 300)
    assert answer.score is None
    assert "was not scored: The reference has 301 tokens" in answer.note
    assert answer.text == engine.answer("Who?", mode="closed_book").text
    with pytest.raises(ValueError, match="reference is empty"):
        engine.answer("Who?", mode="closed_book", reference=" ")


def test_a_call_may_have_words_of_its_own(engine: Engine) -> None:
    words = PromptTemplate(closed_book="{question}", stuffed="{context} {question}")
    asked = engine.answer("Who?", ["Tanaka."], template=words)
    assert asked.usage["prompt_tokens"] == len("Tanaka. Who?") + 1  # and BOS
    bare = engine.answer("Who?", mode="closed_book", template=words)
    assert bare.usage["prompt_tokens"] == len("Who?") + 1


def test_the_size_leaves_out_a_table_that_is_only_looked_up(engine: Engine) -> None:
    model = build()
    table = model.get_input_embeddings().weight.numel()
    assert engine.size.parameters == sum(p.numel() for p in model.parameters()) - table
    assert (engine.size.layers, engine.size.width) == (2, 32)


def test_an_answer_in_the_background_begins_again(engine: Engine) -> None:
    """The training of the one is put back when the other is asked; both answers are right."""
    wanted = engine.answer("Who?", ["Tanaka."], mode="train")
    began, asked = threading.Event(), threading.Event()
    starts: list[int] = []

    class Watch(Callback):
        def on_train_step(self, event: Event, control: Control) -> None:
            if event["step"] == 1:
                starts.append(1)
                began.set()
                asked.wait(30)

    def shadow() -> Answer:
        with background():
            return engine.answer("Who?", ["Tanaka."], mode="train", callbacks=[Watch()])

    with ThreadPoolExecutor() as pool:
        shadowed = pool.submit(shadow)
        assert began.wait(30)
        first = pool.submit(engine.answer, "Who?", mode="closed_book")
        while not engine._worker._jobs:
            time.sleep(0.001)
        asked.set()
        first.result()
        assert shadowed.result().text == wanted.text
    assert len(starts) == 2
