"""The training synthesizer: what the engine answers, in every way to call it, and its events."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import TRAINING, build, byte_tokenizer
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.llms import MockLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index_sift import SIFTLLM, SIFTCallbackHandler, TTTSynthesizer

from sift_rag.engine import Engine
from sift_rag.events import Callback
from sift_rag.training import TrainingConfig

TEXTS = (
    "The Korgost pump is inspected by Tanaka. The Korgost pump was built in 1987.",
    "The Korgost pump stands in Oslo. The Korgost pump weighs 340 kg.",
)
QUESTION = "Who inspects the Korgost pump?"
STUFF = PromptTemplate("{context_str}\n\nQuestion: {query_str}\nAnswer:")
ASK = PromptTemplate("Question: {query_str}\nAnswer:")
MODES = ("stuff", "train", "both", "closed_book")
WAYS = ("sync", "async", "stream", "astream")


@pytest.fixture(scope="module")
def tiny() -> Iterator[Engine]:
    with Engine.tiny() as engine:
        yield engine


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def scored(*texts: str, **more: Any) -> list[NodeWithScore]:
    return [
        NodeWithScore(node=TextNode(text=text, id_=f"n{i}", **more), score=1 - i / 10)
        for i, text in enumerate(texts)
    ]


NODES = scored(*TEXTS)


def directly(tiny: Engine, mode: Any, **more: Any) -> str:
    return tiny.answer(QUESTION, TEXTS, mode=mode, **more).text


async def ask(
    engine: Any,
    way: str,
    nodes: Any = NODES,
    question: Any = QUESTION,
    call: Any = None,
    **more: Any,
) -> Any:
    """The response of a fresh synthesizer."""
    synthesizer = TTTSynthesizer(engine, streaming=way in ("stream", "astream"), **more)
    if way in ("sync", "stream"):
        return synthesizer.synthesize(question, nodes, **(call or {}))
    return await synthesizer.asynthesize(question, nodes, **(call or {}))


async def text_of(response: Any) -> str:
    """Of each kind of response, by its pieces where it has some; without space around it."""
    if isinstance(response, AsyncStreamingResponse):
        return "".join([piece async for piece in response.response_gen]).strip()
    if isinstance(response, StreamingResponse):
        return "".join(response.response_gen).strip()
    assert isinstance(response, Response)
    return str(response)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
async def test_every_way_gives_what_the_engine_gives(tiny: Engine, mode: Any, way: str) -> None:
    response: Any = await ask(tiny, way, mode=mode)
    kinds: Any = {"stream": StreamingResponse, "astream": AsyncStreamingResponse}
    assert type(response) is kinds.get(way, Response)
    assert await text_of(response) == directly(tiny, mode)
    assert response.source_nodes == NODES
    assert response.metadata == {"n0": {}, "n1": {}}
    assert await text_of(await ask(tiny, way, question=QueryBundle(QUESTION), mode=mode)) == (
        directly(tiny, mode)
    )


def test_the_modes_do_differ(tiny: Engine) -> None:
    assert directly(tiny, "closed_book") != directly(tiny, "train") == "Tanaka"


async def test_printed_streams_are_whole(tiny: Engine) -> None:
    assert str(await ask(tiny, "stream")).strip() == "Tanaka"
    whole = await (await ask(tiny, "astream")).get_response()
    assert str(whole).strip() == "Tanaka"
    assert whole.source_nodes == NODES


@pytest.mark.parametrize("way", WAYS)
async def test_it_trains_on_the_nodes_own_text(tiny: Engine, way: str) -> None:
    """Not on metadata, which a prompt shows as far as the node wants it."""
    seen: list[int] = []

    class Count(Callback):
        def on_train_end(self, event: Any, control: Any) -> None:
            seen.append(event["tokens"])

    nodes = scored(*TEXTS, metadata={"file": "pumps.txt", "secret": 1})
    for each in nodes:
        each.node.excluded_llm_metadata_keys = ["secret"]
    response = await ask(tiny, way, nodes, callbacks=[Count()])
    assert await text_of(response) == directly(tiny, "train")
    direct = tiny.answer(QUESTION, TEXTS, mode="train").training
    assert direct is not None
    assert seen == [direct.tokens]
    assert response.metadata == {f"n{i}": {"file": "pumps.txt", "secret": 1} for i in range(2)}
    shown = [each.node.get_content(metadata_mode=MetadataMode.LLM) for each in nodes]
    assert "pumps.txt" in shown[0]
    assert "secret" not in shown[0]
    stuffed = tiny.answer(QUESTION, shown, mode="stuff")
    debug = LlamaDebugHandler(print_trace_on_end=False)
    response = await ask(tiny, way, nodes, mode="stuff", callback_manager=CallbackManager([debug]))
    assert await text_of(response) == stuffed.text
    (_, end), *_ = debug.get_llm_inputs_outputs()
    assert end.payload is not None
    usage = end.payload["completion"].additional_kwargs
    assert usage["prompt_tokens"] == stuffed.usage["prompt_tokens"]


@pytest.mark.parametrize("way", WAYS)
async def test_without_nodes_it_is_as_the_others_are(tiny: Engine, way: str) -> None:
    other = get_response_synthesizer(llm=MockLLM())
    for mode in ("train", "both", "stuff"):
        empty = await ask(tiny, way, [], mode=mode)
        assert await text_of(empty) == str(other.synthesize(QUESTION, [])) == "Empty Response"
        assert empty.source_nodes == []
    asked = await ask(tiny, way, [], mode="closed_book")
    assert await text_of(asked) == directly(tiny, "closed_book")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("text", ["", " \n"])
async def test_without_a_text_nothing_is_trained(tiny: Engine, way: str, text: str) -> None:
    nodes = scored(text)
    assert await text_of(await ask(tiny, way, nodes)) == directly(tiny, "closed_book")
    both = await text_of(await ask(tiny, way, nodes, mode="both"))
    assert both == await text_of(await ask(tiny, way, nodes, mode="stuff"))


async def test_further_source_nodes_are_kept(tiny: Engine) -> None:
    more = scored("x")
    synthesizer = TTTSynthesizer(tiny, "closed_book")
    for response in (
        synthesizer.synthesize(QUESTION, NODES, more),
        await synthesizer.asynthesize(QUESTION, NODES, more),
    ):
        assert response.source_nodes == [*NODES, *more]


async def test_braces_in_a_text_stay_text(tiny: Engine) -> None:
    texts = ["The {query_str} pump {} is {inspected by Tanaka. {{x}}"]
    for mode in ("stuff", "both", "train"):
        wanted = tiny.answer(QUESTION, texts, mode=mode).text
        assert await text_of(await ask(tiny, "sync", scored(*texts), mode=mode)) == wanted


async def test_a_call_may_set_the_mode(tiny: Engine) -> None:
    for way in WAYS:
        response = await ask(tiny, way, call={"mode": "stuff"})
        assert await text_of(response) == directly(tiny, "stuff")
    response = await ask(tiny, "sync", mode="stuff", call={"mode": "train"})
    assert await text_of(response) == directly(tiny, "train")
    with pytest.raises(ValueError, match="mode is 'stuffed'"):
        await ask(tiny, "sync", call={"mode": "stuffed"})


def test_texts_alone_will_do(tiny: Engine) -> None:
    """`get_response` is how other synthesizers and evaluators of LlamaIndex ask."""
    assert TTTSynthesizer(tiny).get_response(QUESTION, TEXTS) == directly(tiny, "train")
    assert TTTSynthesizer(tiny, "stuff").get_response(QUESTION, TEXTS) == directly(tiny, "stuff")


# Templates


def test_a_template_that_does_not_suit_the_mode_is_refused(tiny: Engine) -> None:
    with pytest.raises(ValueError, match=r"pass ttt_template=, .* or use mode=.both."):
        TTTSynthesizer(tiny, text_qa_template=STUFF)
    with pytest.raises(ValueError, match=r"variables are .'query_str'.: add \{context_str\}"):
        TTTSynthesizer(tiny, "both", text_qa_template=ASK)
    with pytest.raises(ValueError, match="ttt_template has the variable 'context_str'"):
        TTTSynthesizer(tiny, ttt_template=STUFF)
    with pytest.raises(TypeError, match="must be a prompt template of LlamaIndex, got str"):
        TTTSynthesizer(tiny, text_qa_template="{context_str}")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode is 'stuffed'"):
        TTTSynthesizer(tiny, "stuffed")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="an Engine or a SIFTLLM, got MockLLM"):
        TTTSynthesizer(MockLLM())  # type: ignore[arg-type]


async def test_own_templates(tiny: Engine) -> None:
    assert await text_of(await ask(tiny, "sync", text_qa_template=ASK)) == "Tanaka"
    both = {"text_qa_template": STUFF, "ttt_template": ASK}
    for mode in MODES:
        assert await text_of(await ask(tiny, "sync", mode=mode, **both)) == directly(tiny, mode)
    renamed = PromptTemplate(
        "{docs}\n\nQuestion: {query_str}\nAnswer:", template_var_mappings={"context_str": "docs"}
    )
    response = await ask(tiny, "sync", mode="stuff", text_qa_template=renamed)
    assert await text_of(response) == directly(tiny, "stuff")
    asked = PromptTemplate("Question: Who inspects the {what}?\nAnswer:")
    response = await ask(tiny, "async", text_qa_template=asked, call={"what": "Korgost pump"})
    assert await text_of(response) == "Tanaka"


def test_prompts_can_be_read_and_changed(tiny: Engine) -> None:
    synthesizer = TTTSynthesizer(tiny)
    assert set(synthesizer.get_prompts()) == {"text_qa_template", "ttt_template"}
    other = PromptTemplate("{query_str} It is")
    synthesizer.update_prompts({"ttt_template": other})
    wanted = tiny.answer(QUESTION, TEXTS, mode="train", prompt=f"{QUESTION} It is").text
    assert synthesizer.get_response(QUESTION, TEXTS) == wanted
    with pytest.raises(ValueError, match="ttt_template has the variable"):
        synthesizer.update_prompts({"ttt_template": STUFF})
    assert synthesizer.get_prompts()["ttt_template"].get_template() == "{query_str} It is"


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_after_broken_training_the_nodes_are_stuffed(chat: bool, way: str) -> None:
    tokenizer = byte_tokenizer()
    if chat:
        tokenizer.chat_template = (
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
        )
    with Engine(build(), tokenizer, training=TRAINING, max_new_tokens=8) as engine:
        engine._answerer.lm.model.lm_head.weight.data *= 4
        wild = TrainingConfig(learning_rate=0.1, alpha=1e6, epochs=9, rank=4)
        nodes = scored("a" * 19, "bcdefghijklmn 0123456")
        broken = await text_of(await ask(engine, way, nodes, "Where?", training=wild))
        assert broken == await text_of(await ask(engine, way, nodes, "Where?", mode="stuff"))
        closed = await ask(engine, way, nodes, "Where?", mode="closed_book")
        assert broken != await text_of(closed)


async def test_a_chat_template_gets_a_chat_prompt() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    template = ChatPromptTemplate.from_messages(
        [("system", "{context_str}"), ("user", "{query_str}")]
    )
    with Engine(build(), tokenizer, training=TRAINING, max_new_tokens=12) as engine:
        engine._answerer.lm.model.lm_head.weight.data *= 4
        turns = [
            {"role": "system", "content": "\n\n".join(TEXTS)},
            {"role": "user", "content": QUESTION},
        ]
        for mode in ("stuff", "both"):
            wanted = engine.answer("x", TEXTS, mode=mode, prompt=turns).text
            assert wanted
            for way in WAYS:
                response = await ask(engine, way, mode=mode, text_qa_template=template)
                assert await text_of(response) == wanted


# Settings


async def test_settings_of_a_model_hold(tiny: Engine) -> None:
    for way in WAYS:
        short = await ask(SIFTLLM(engine=tiny, max_tokens=1), way)
        assert await text_of(short) == directly(tiny, "train", max_new_tokens=1)
        assert await text_of(await ask(SIFTLLM(engine=tiny, stop=["nak"]), way)) == "Ta"


def test_it_leaves_the_model_that_it_is_given_alone(tiny: Engine) -> None:
    mine, other = CallbackManager([]), CallbackManager([])
    llm = SIFTLLM(engine=tiny, callback_manager=mine)
    synthesizer = TTTSynthesizer(llm, callback_manager=other)
    synthesizer.synthesize(QUESTION, NODES)
    assert llm.callback_manager is mine
    assert llm.train_on == ()
    handler = SIFTCallbackHandler()
    own = SIFTLLM(engine=tiny, callback_manager=CallbackManager([handler]))
    assert TTTSynthesizer(own).callback_manager.handlers == [handler]


# Callbacks


class Watch(SIFTCallbackHandler):
    """Keeps what it is told."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.told: list[str] = []
        self.steps: list[dict[str, Any]] = []

    def on_start(self, event: Any, control: Any) -> None:
        super().on_start(event, control)
        assert event["question"] == QUESTION
        self.told.append(f"start {event['mode']} {event['k']}")

    def on_train_step(self, event: Any, control: Any) -> None:
        super().on_train_step(event, control)
        self.told.append("step")
        self.steps.append(event)

    def on_train_end(self, event: Any, control: Any) -> None:
        self.told.append("trained")

    def on_answer(self, event: Any, control: Any) -> None:
        self.told.append("answer " + event["mode"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", ["manager", "both", "callbacks"])
async def test_a_handler_configures_and_stops_a_call(tiny: Engine, way: str, where: str) -> None:
    training = TrainingConfig(epochs=2, rank=8)
    watch = Watch(training=training, stop_when=lambda step: step["step"] == 3)
    more: dict[str, Any] = (
        {"callback_manager": CallbackManager([watch])} if where != "callbacks" else {}
    )
    if where != "manager":
        more["callbacks"] = [watch]
    await text_of(await ask(tiny, way, **more))
    assert watch.told == ["start train 2", "step", "step", "step", "trained", "answer train"]
    assert {step["steps"] for step in watch.steps} == {4}  # two epochs of two texts
    later = Watch()
    await text_of(await ask(tiny, way, callbacks=[later]))
    assert len(later.steps) > 3  # the settings were that call's alone


async def test_what_is_said_last_holds(tiny: Engine) -> None:
    """The model's training gives way to the synthesizer's, and that to a handler's."""
    model = SIFTLLM(engine=tiny, training=TrainingConfig(steps=1))
    watch = Watch()
    await ask(model, "sync", callbacks=[watch])
    await ask(model, "sync", callbacks=[watch], training=TrainingConfig(steps=2))
    configured = SIFTCallbackHandler(training=TrainingConfig(steps=3))
    await ask(model, "sync", callbacks=[configured, watch], training=TrainingConfig(steps=2))
    assert [step["steps"] for step in watch.steps] == [1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hook", ["on_start", "on_train_step", "on_answer"])
async def test_a_handler_that_raises_ends_the_call(tiny: Engine, way: str, hook: str) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no")

    handler = type("Refuse", (SIFTCallbackHandler,), {hook: refuse})()
    debug = LlamaDebugHandler(print_trace_on_end=False)
    manager = CallbackManager([handler, debug])
    with pytest.raises(PermissionError):
        await text_of(await ask(tiny, way, callback_manager=manager))
    assert debug.get_event_pairs(CBEventType.SYNTHESIZE)  # begun and ended all the same
    assert await text_of(await ask(tiny, way)) == directly(tiny, "train")


# Events


class Record(SimpleSpanHandler):
    """Which spans are open, and whose child each is."""

    def parents(self, span: str | None) -> list[str]:
        names = []
        known = {s.id_: s.parent_id for s in [*self.open_spans.values(), *self.completed_spans]}
        while span is not None:
            names.append(span.split("-")[0])
            span = known[span]
        return names


class Heard(BaseEventHandler):
    """Events by name, each with whether its span was open then, and the spans around it."""

    spans: Record
    names: list[str]
    around: list[tuple[str, bool, list[str]]]

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.names.append(event.class_name())
        if event.class_name().startswith("TTT"):
            is_open = event.span_id in self.spans.open_spans
            self.around.append((event.class_name(), is_open, self.spans.parents(event.span_id)))


@pytest.fixture
def heard() -> Iterator[Heard]:
    root = get_dispatcher()
    spans = Record()
    handler = Heard(spans=spans, names=[], around=[])
    before = list(root.event_handlers), list(root.span_handlers)
    root.add_event_handler(handler)
    root.add_span_handler(spans)
    yield handler
    root.event_handlers, root.span_handlers = before


@pytest.mark.parametrize("way", WAYS)
async def test_events_come_in_order_while_their_span_is_open(
    tiny: Engine, heard: Heard, way: str
) -> None:
    assert await text_of(await ask(tiny, way)) == "Tanaka"
    kinds = [name for name, _, _ in heard.around]
    assert kinds == ["TTTStartEvent", *["TTTStepEvent"] * (len(kinds) - 2), "TTTEndEvent"]
    assert len(kinds) > 4
    outer = "asynthesize" if way.startswith("a") else "synthesize"
    response = "aget_response" if way.startswith("a") else "get_response"
    spans = [f"TTTSynthesizer.{response}", f"TTTSynthesizer.{outer}"]
    assert all(is_open and around == spans for _, is_open, around in heard.around)
    place = heard.names.index
    assert place("SynthesizeStartEvent") < place("TTTStartEvent") < place("TTTEndEvent")
    assert place("TTTEndEvent") < place("SynthesizeEndEvent")
    assert heard.names.count("SynthesizeStartEvent") == 1
    assert heard.names.count("LLMCompletionStartEvent") == 1
    assert heard.names.count("LLMCompletionEndEvent") == 1


async def test_every_event_tells_what_it_should(tiny: Engine) -> None:
    events: list[Any] = []

    class Keep(BaseEventHandler):
        def handle(self, event: Any, **kwargs: Any) -> None:
            events.append(event)

    root = get_dispatcher()
    before = list(root.event_handlers)
    root.add_event_handler(Keep())
    try:
        await ask(tiny, "sync", training=TrainingConfig(steps=2))
    finally:
        root.event_handlers = before
    start, one, two, end = [e for e in events if e.class_name().startswith("TTT")]
    assert (start.texts, start.config["steps"]) == (2, 2)
    assert [(step.step, step.steps) for step in (one, two)] == [(1, 2), (2, 2)]
    assert end.report["losses"] == [one.loss, two.loss]
    assert not any(text in str(e.model_dump()) for e in (start, one, two, end) for text in TEXTS)


@pytest.mark.parametrize("way", WAYS)
async def test_llama_indexs_own_events_come_once(tiny: Engine, way: str) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    await text_of(await ask(tiny, way, callback_manager=CallbackManager([debug])))
    for kind in (CBEventType.SYNTHESIZE, CBEventType.LLM, CBEventType.TEMPLATING):
        assert len(debug.get_event_pairs(kind)) == 1


# Leaving early, and many at once


class Ending(Callback):
    """Says how training began and ended."""

    def __init__(self) -> None:
        self.begun, self.over = threading.Event(), threading.Event()
        self.stopped: list[str] = []
        self.answered = False

    def on_train_step(self, event: Any, control: Any) -> None:
        self.begun.set()

    def on_train_end(self, event: Any, control: Any) -> None:
        self.stopped.append(event["stopped"])
        self.over.set()


@pytest.mark.parametrize("way", ["async", "astream"])
async def test_a_cancelled_task_stops_the_training(tiny: Engine, way: str) -> None:
    watch = Ending()
    endless = TrainingConfig(steps=100_000)
    task = asyncio.create_task(ask(tiny, way, training=endless, callbacks=[watch]))
    while not watch.begun.is_set():
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(watch.over.wait, 20)
    assert watch.stopped == ["cancelled"]
    assert await text_of(await ask(tiny, way)) == directly(tiny, "train")


@pytest.mark.parametrize("way", ["stream", "astream"])
@pytest.mark.parametrize("read", [False, True])
async def test_an_abandoned_response_stops_the_answer(tiny: Engine, way: str, read: bool) -> None:
    left, done = threading.Event(), []

    class Hold(Callback):
        def on_token(self, event: Any, control: Any) -> None:
            if event["index"] > 1:
                assert left.wait(20)

        def on_answer(self, event: Any, control: Any) -> None:
            done.append(event["text"])

    debug = CallbackManager([LlamaDebugHandler(print_trace_on_end=False)])
    long = PromptTemplate("The Korgost pump")  # which goes on for a hundred pieces
    more: dict[str, Any] = {"text_qa_template": long, "callbacks": [Hold()]}
    response = await ask(tiny, way, callback_manager=debug, **more)
    if way == "stream":
        if read:
            next(response.response_gen)
        response.response_gen.close()
    else:
        if read:
            await anext(response.response_gen)
        await response.response_gen.aclose()
        del response
        await asyncio.sleep(0.01)  # the loop's turn to end the generators inside
    left.set()
    assert await text_of(await ask(tiny, "async")) == "Tanaka"  # after the other job
    assert done == []


async def test_the_loop_goes_on_while_it_trains(tiny: Engine) -> None:
    for way in ("async", "astream"):
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        await text_of(await ask(tiny, way, training=TrainingConfig(epochs=20)))
        ticking.cancel()
        assert ticks > 20


async def test_arms_side_by_side_get_what_they_get_alone(tiny: Engine) -> None:
    """Adapters are global to a model: only one owner of it can keep the arms apart."""
    responses = await asyncio.gather(
        *(ask(tiny, way, mode=mode) for way in ("async", "astream") for mode in MODES)
    )
    texts = [await text_of(response) for response in responses]
    assert texts == [directly(tiny, mode) for mode in MODES] * 2
