"""The training chain: equal to the stuff chain where it stuffs, in every way to call it."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import TRAINING, build
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import JsonOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel
from langchain_sift import ChatSIFT, SIFTCallbackHandler, create_ttt_documents_chain

from sift_rag.engine import Engine
from sift_rag.training import TrainingConfig

TEXTS = (
    "The Korgost pump is inspected by Tanaka. The Korgost pump was built in 1987.",
    "The Korgost pump stands in Oslo. The Korgost pump weighs 340 kg.",
)
DOCUMENTS = [Document(text, metadata={"source": i}, id=str(i)) for i, text in enumerate(TEXTS)]
INPUTS: dict[str, Any] = {"input": "Who inspects the Korgost pump?", "context": DOCUMENTS}
STUFF = PromptTemplate.from_template("{context}\n\nQuestion: {input}\nAnswer:")
ASK = PromptTemplate.from_template("Question: {input}\nAnswer:")
MODES = ("stuff", "train", "both", "closed_book")


@pytest.fixture(scope="module")
def tiny() -> Iterator[Engine]:
    with Engine.tiny() as engine:
        yield engine


def chain(tiny: Any, mode: Any = "train", **more: Any) -> Any:
    return create_ttt_documents_chain(tiny, STUFF, ttt_prompt=ASK, mode=mode, **more)


def directly(tiny: Engine, mode: Any) -> str:
    return tiny.answer(INPUTS["input"], TEXTS, mode=mode).text


@pytest.mark.parametrize("mode", MODES)
async def test_every_way_to_call_gives_what_the_engine_gives(tiny: Engine, mode: Any) -> None:
    made, wanted = chain(tiny, mode), directly(tiny, mode)
    assert made.invoke(INPUTS) == wanted
    assert await made.ainvoke(INPUTS) == wanted
    assert "".join(made.stream(INPUTS)) == wanted
    assert "".join([piece async for piece in made.astream(INPUTS)]) == wanted
    assert made.batch([INPUTS] * 3) == [wanted] * 3
    assert await made.abatch([INPUTS] * 3) == [wanted] * 3


def test_the_modes_do_differ(tiny: Engine) -> None:
    assert directly(tiny, "closed_book") != directly(tiny, "train") == "Tanaka"


@pytest.mark.parametrize(
    "prompt",
    [
        STUFF,
        ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{input} Answer:")]),
    ],
)
@pytest.mark.parametrize("documents", [DOCUMENTS, DOCUMENTS[:1], [], [Document("")]])
def test_stuffing_is_the_classic_stuff_chain(
    tiny: Engine, prompt: Any, documents: list[Document]
) -> None:
    """Also with an own format, and with none at all: the same text from the same model."""
    own = PromptTemplate.from_template("[{source}] {page_content}")
    inputs = INPUTS | {"context": documents}
    ways: list[dict[str, Any]] = [{}, {"document_separator": " | "}, {"document_prompt": own}]
    for more in ways:
        if "document_prompt" in more and documents == [Document("")]:
            continue  # which has no source
        classic = create_stuff_documents_chain(ChatSIFT(engine=tiny), prompt, **more)
        ours = create_ttt_documents_chain(tiny, prompt, mode="stuff", **more)
        assert ours.invoke(inputs) == classic.invoke(inputs)


def test_any_model_may_stuff(tiny: Engine) -> None:
    made = create_ttt_documents_chain(FakeListChatModel(responses=["Oslo"]), STUFF, mode="stuff")
    assert made.invoke(INPUTS) == "Oslo"
    with pytest.raises(TypeError, match=r"needs a model that can be trained.* got FakeListChat"):
        create_ttt_documents_chain(FakeListChatModel(responses=["Oslo"]), STUFF, mode="both")


def test_a_prompt_that_does_not_suit_the_mode_is_refused(tiny: Engine) -> None:
    with pytest.raises(ValueError, match=r"pass ttt_prompt=, .* or use mode=.both."):
        create_ttt_documents_chain(tiny, STUFF)
    with pytest.raises(ValueError, match=r"variables are .'input'.: add \{context\} to it"):
        create_ttt_documents_chain(tiny, ASK, mode="both")
    with pytest.raises(ValueError, match="ttt_prompt has the variable 'context'"):
        create_ttt_documents_chain(tiny, STUFF, ttt_prompt=STUFF)
    with pytest.raises(TypeError, match="must be a prompt template of LangChain, got str"):
        create_ttt_documents_chain(tiny, "{context}")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="mode"):
        create_ttt_documents_chain(tiny, STUFF, mode="stuffed")  # type: ignore[arg-type]
    assert create_ttt_documents_chain(tiny, ASK).invoke(INPUTS) == directly(tiny, "train")


def test_the_input_must_hold_the_documents(tiny: Engine) -> None:
    with pytest.raises(ValueError, match=r"dict with 'context', the documents; got .'input'."):
        chain(tiny).invoke({"input": "x"})
    with pytest.raises(ValueError, match="got str"):
        chain(tiny).invoke("x")


@pytest.mark.parametrize("documents", [[], [Document("")], [Document(" \n")]])
def test_without_a_text_nothing_is_trained(tiny: Engine, documents: list[Document]) -> None:
    inputs = INPUTS | {"context": documents}
    assert chain(tiny).invoke(inputs) == directly(tiny, "closed_book")
    assert chain(tiny, "both").invoke(inputs) == chain(tiny, "stuff").invoke(inputs)


def test_each_request_chooses_its_mode(tiny: Engine) -> None:
    made = chain(tiny).configurable_fields(mode=ConfigurableField(id="mode"))
    for mode in MODES:
        assert made.invoke(INPUTS, {"configurable": {"mode": mode}}) == directly(tiny, mode)
    assert made.invoke(INPUTS) == directly(tiny, "train")
    stuff_only = create_ttt_documents_chain(tiny, STUFF, mode="stuff").configurable_fields(
        mode=ConfigurableField(id="mode")
    )
    with pytest.raises(ValueError, match="pass ttt_prompt="):
        stuff_only.invoke(INPUTS, {"configurable": {"mode": "train"}})


async def test_in_the_retrieval_chain_unchanged(tiny: Engine) -> None:
    retriever: Any = RunnableLambda(lambda question: DOCUMENTS)
    for mode in MODES:
        whole: Any = create_retrieval_chain(
            RunnableLambda(lambda x: x["input"]) | retriever, chain(tiny, mode)
        )
        wanted = directly(tiny, mode)
        inputs = {"input": INPUTS["input"]}
        assert whole.invoke(inputs) == INPUTS | {"answer": wanted}
        assert (await whole.ainvoke(inputs))["answer"] == wanted
        assert "".join(piece.get("answer", "") for piece in whole.stream(inputs)) == wanted
        events = [event async for event in whole.astream_events(inputs, version="v2")]
        said = [e for e in events if e["event"] == "on_chat_model_stream"]
        assert "".join(event["data"]["chunk"].content for event in said) == wanted


def test_arms_side_by_side_get_what_they_get_alone(tiny: Engine) -> None:
    """Adapters are global to a model: only one owner of it can keep the arms apart."""
    arms: Any = RunnableParallel(**{mode: chain(tiny, mode) for mode in MODES})
    for _ in range(3):
        assert arms.invoke(INPUTS) == {mode: directly(tiny, mode) for mode in MODES}


async def test_arms_side_by_side_as_tasks(tiny: Engine) -> None:
    arms: Any = RunnableParallel(**{mode: chain(tiny, mode) for mode in MODES})
    found = await asyncio.gather(*(arms.ainvoke(INPUTS) for _ in range(8)))
    assert found == [{mode: directly(tiny, mode) for mode in MODES}] * 8


def test_settings_of_a_bound_model_hold(tiny: Engine) -> None:
    bound = ChatSIFT(engine=tiny, max_tokens=1).bind(stop=["zzz"])
    assert (
        chain(bound).invoke(INPUTS)
        == tiny.answer(INPUTS["input"], TEXTS, mode="train", max_new_tokens=1).text
    )
    assert chain(ChatSIFT(engine=tiny).bind(stop=["nak"])).invoke(INPUTS) == "Ta"


def test_another_parser_and_another_name(tiny: Engine) -> None:
    parsed = chain(tiny, output_parser=JsonOutputParser())
    with pytest.raises(Exception, match="Invalid json output: Tanaka"):
        parsed.invoke(INPUTS)
    ask = PromptTemplate.from_template("{docs}\n\nQuestion: {input}\nAnswer:")
    named = create_ttt_documents_chain(tiny, ask, mode="both", document_variable_name="docs")
    answer = named.invoke({"input": INPUTS["input"], "docs": DOCUMENTS})
    assert answer == directly(tiny, "both")


def test_after_broken_training_the_documents_are_stuffed(tokenizer: Any) -> None:
    with Engine(build(), tokenizer, training=TRAINING, max_new_tokens=8) as engine:
        engine._answerer.lm.model.lm_head.weight.data *= 4
        wild = TrainingConfig(learning_rate=0.1, alpha=1e6, epochs=9, rank=4)
        texts = ["a" * 19, "bcdefghijklmn 0123456"]
        inputs = {"input": "Where?", "context": [Document(text) for text in texts]}
        broken = chain(engine, training=wild).invoke(inputs)
        assert broken == chain(engine, "stuff").invoke(inputs)
        assert broken != chain(engine, "closed_book").invoke(inputs)


# Callbacks


class Watch(SIFTCallbackHandler):
    """Keeps the names of what it is told."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.told: list[str] = []
        self.steps: list[dict[str, Any]] = []

    def on_start(self, event: Any, control: Any) -> None:
        super().on_start(event, control)
        self.told.append("start " + event["mode"])

    def on_train_step(self, event: Any, control: Any) -> None:
        super().on_train_step(event, control)
        self.told.append("step")
        self.steps.append(event)

    def on_train_end(self, event: Any, control: Any) -> None:
        self.told.append("trained")

    def on_answer(self, event: Any, control: Any) -> None:
        self.told.append("answer " + event["text"])


@pytest.mark.parametrize("way", ["invoke", "stream", "batch", "ainvoke", "astream", "nested"])
async def test_a_handler_configures_this_call_however_it_is_made(tiny: Engine, way: str) -> None:
    training = TrainingConfig(epochs=2, rank=8)
    watch = Watch(training=training, stop_when=lambda step: step["step"] == 3)
    config: Any = {"callbacks": [watch]}
    made = chain(tiny)
    if way == "invoke":
        made.invoke(INPUTS, config)
    elif way == "stream":
        list(made.stream(INPUTS, config))
    elif way == "batch":
        made.batch([INPUTS], config)
    elif way == "ainvoke":
        await made.ainvoke(INPUTS, config)
    elif way == "astream":
        _ = [piece async for piece in made.astream(INPUTS, config)]
    else:
        nested: Any = RunnableParallel(one={"deep": made}) | RunnableLambda(lambda x: x)
        nested.invoke(INPUTS, config)
    assert watch.told[:5] == ["start train", "step", "step", "step", "trained"]
    assert watch.told[5].startswith("answer ")
    assert len(watch.told) == 6  # told once each, though it is a handler of chain and model
    assert {step["steps"] for step in watch.steps} == {4}  # two epochs of two texts
    later = Watch()
    made.invoke(INPUTS, {"callbacks": [later]})
    assert len(later.steps) > 3  # the settings were that call's alone


@pytest.mark.parametrize("mode", MODES)
def test_events_say_what_the_chain_was_asked(tiny: Engine, mode: Any) -> None:
    told: list[dict[str, Any]] = []

    class Keep(SIFTCallbackHandler):
        def on_start(self, event: Any, control: Any) -> None:
            told.append(event)

        def on_answer(self, event: Any, control: Any) -> None:
            told.append(event)

    chain(tiny, mode).invoke(INPUTS, {"callbacks": [Keep()]})
    start, end = told
    assert (start["question"], start["mode"], start["k"]) == (INPUTS["input"], mode, 2)
    assert end["mode"] == mode


def test_arguments_of_a_call_belong_to_the_model(tiny: Engine) -> None:
    with pytest.raises(TypeError, match="takes no argument 'stop': bind it to the model"):
        chain(tiny).invoke(INPUTS, stop=["x"])


def test_two_handlers_in_two_arms(tiny: Engine) -> None:
    one, two = (Watch(stop_when=lambda step, n=n: step["step"] == n) for n in (1, 2))
    arms: Any = RunnableParallel(
        one=chain(tiny).with_config(callbacks=[one]), two=chain(tiny).with_config(callbacks=[two])
    )
    arms.invoke(INPUTS)
    assert [len(one.steps), len(two.steps)] == [1, 2]


async def test_the_events_arrive_as_custom_events(tiny: Engine) -> None:
    events = [event async for event in chain(tiny).astream_events(INPUTS, version="v2")]
    custom = [event for event in events if event["event"] == "on_custom_event"]
    names = [event["name"] for event in custom]
    steps = names.count("sift_train_step")
    assert steps > 1
    assert names == [
        "sift_start",
        "sift_train_start",
        *["sift_train_step"] * steps,
        "sift_train_end",
        "sift_answer",
    ]
    start = next(event for event in events if event["name"] == "ttt_documents_chain")
    assert {event["run_id"] for event in custom} == {start["run_id"]}
    assert all(event["data"]["schema"] == 1 for event in custom)
    assert not any(text in str(event["data"]) for event in custom for text in TEXTS)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_any_handler_gets_them(tiny: Engine, way: str) -> None:
    class Plain(BaseCallbackHandler):
        def __init__(self) -> None:
            self.names: set[str] = set()

        def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
            self.names.add(name)

    class Async(AsyncCallbackHandler):
        def __init__(self) -> None:
            self.names: set[str] = set()

        async def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
            self.names.add(name)

    handlers: list[Any] = [Plain(), Async()]
    config: Any = {"callbacks": handlers}
    if way == "invoke":
        await asyncio.to_thread(chain(tiny).invoke, INPUTS, config)
    else:
        await chain(tiny).ainvoke(INPUTS, config)
    for handler in handlers:
        assert {"sift_train_start", "sift_train_step", "sift_answer"} <= handler.names


@pytest.mark.parametrize("hook", ["on_start", "on_train_step", "on_answer"])
async def test_a_handler_that_raises_ends_the_call(tiny: Engine, hook: str) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError("no")

    handler = type("Refuse", (SIFTCallbackHandler,), {hook: refuse})()
    with pytest.raises(PermissionError):
        chain(tiny).invoke(INPUTS, {"callbacks": [handler]})
    with pytest.raises(PermissionError):
        await chain(tiny).ainvoke(INPUTS, {"callbacks": [handler]})
    assert chain(tiny).invoke(INPUTS) == directly(tiny, "train")


def test_bad_settings_of_a_handler() -> None:
    with pytest.raises(ValueError, match="k is 0; it must be at least 1"):
        SIFTCallbackHandler(k=0)
    with pytest.raises(ValueError, match="noise is nan; it must be above 0"):
        SIFTCallbackHandler(noise=float("nan"))


# The cache, and leaving early


def test_the_llm_cache_keeps_two_document_sets_apart(tiny: Engine) -> None:
    other = [Document("The Korgost pump is inspected by Petrov.")]
    set_llm_cache(InMemoryCache())
    try:
        for mode in ("train", "both", "stuff"):
            for _ in range(2):
                assert chain(tiny, mode).invoke(INPUTS) == "Tanaka", mode
                assert chain(tiny, mode).invoke(INPUTS | {"context": other}) == "Petrov", mode
        watch = Watch()
        chain(tiny).invoke(INPUTS, {"callbacks": [watch]})
        assert watch.steps  # what a handler does to the training is not in the key
        counted: list[str] = []

        class Count(BaseCallbackHandler):
            def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
                counted.append(name)

        chain(tiny).invoke(INPUTS, {"callbacks": [Count()]})
        assert counted == ["sift_start"]  # the answer is known, so nothing was trained
    finally:
        set_llm_cache(None)


def test_an_abandoned_stream_stops_the_training(tiny: Engine) -> None:
    ended = threading.Event()

    class End(SIFTCallbackHandler):
        def on_train_end(self, event: Any, control: Any) -> None:
            ended.set()

    pieces = chain(tiny).stream(INPUTS, {"callbacks": [End()]})
    next(pieces)
    pieces.close()
    assert ended.is_set()
    assert chain(tiny).invoke(INPUTS) == directly(tiny, "train")


async def test_a_cancelled_task_stops_the_training(tiny: Engine) -> None:
    loop, started = asyncio.get_running_loop(), asyncio.Event()
    stopped: list[str] = []
    over = threading.Event()

    class Slow(SIFTCallbackHandler):
        def on_train_step(self, event: Any, control: Any) -> None:
            loop.call_soon_threadsafe(started.set)

        def on_train_end(self, event: Any, control: Any) -> None:
            stopped.append(event["stopped"])
            over.set()

    endless = TrainingConfig(steps=100_000)
    task = asyncio.create_task(
        chain(tiny, training=endless).ainvoke(INPUTS, {"callbacks": [Slow()]})
    )
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(over.wait, 20)
    assert stopped == ["cancelled"]
    assert await chain(tiny).ainvoke(INPUTS) == directly(tiny, "train")


async def test_the_loop_goes_on_while_it_trains(tiny: Engine) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    ticking = asyncio.create_task(tick())
    await chain(tiny, training=TrainingConfig(epochs=20)).ainvoke(INPUTS)
    ticking.cancel()
    assert ticks > 20
