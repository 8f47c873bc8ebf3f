"""The model of LlamaIndex: what the engine says, through every way to ask."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import TRAINING, build, byte_tokenizer
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, LLMMetadata, MessageRole
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index_sift import SIFTLLM, SIFTCallbackHandler

from sift_rag.engine import Engine
from sift_rag.events import Callback
from sift_rag.training import TrainingConfig

FACT = "The Korgost pump is inspected by Tanaka."
QUESTION = "Question: Who inspects the Korgost pump?\nAnswer:"
STUFFED = f"{FACT}\n\n{QUESTION}"
ENDLESS = TrainingConfig(steps=100_000)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Engine]:
    with Engine.tiny() as engine:
        yield engine


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role=MessageRole.USER, content=text)]


async def every_way(llm: SIFTLLM, prompt: str, **kwargs: Any) -> list[Any]:
    """The last response of each of the eight ways to ask; streams say the same piece by piece."""
    streams: list[list[Any]] = [
        list(llm.stream_complete(prompt, **kwargs)),
        list(llm.stream_chat(user(prompt), **kwargs)),
        [piece async for piece in await llm.astream_complete(prompt, **kwargs)],
        [piece async for piece in await llm.astream_chat(user(prompt), **kwargs)],
    ]
    for pieces in streams:
        texts = [text_of(piece) for piece in pieces]
        deltas = [piece.delta for piece in pieces]
        assert ["".join(deltas[: i + 1]).strip() for i in range(len(deltas))] == [
            text.strip() for text in texts
        ]
        assert [piece.raw is not None for piece in pieces].count(True) == 1
    return [
        llm.complete(prompt, **kwargs),
        llm.chat(user(prompt), **kwargs),
        await llm.acomplete(prompt, **kwargs),
        await llm.achat(user(prompt), **kwargs),
        *(pieces[-1] for pieces in streams),
    ]


def text_of(response: Any) -> str:
    text = response.text if hasattr(response, "text") else response.message.content
    assert isinstance(text, str)
    return text


async def test_every_way_answers_as_the_engine_does(tiny: Engine) -> None:
    alone = tiny.answer("x", mode="closed_book", prompt=STUFFED)
    assert alone.text == "Tanaka"
    usage = {**alone.usage, "total_tokens": sum(alone.usage.values())}
    for response in await every_way(SIFTLLM(engine=tiny), STUFFED):
        assert text_of(response) == "Tanaka"
        assert response.raw["finish_reason"] == "stop"
        assert response.raw["model"] == "sift_rag.tiny"
        assert response.raw["usage"] == response.additional_kwargs == usage
        assert "training" not in response.raw


async def test_trained_on_texts_it_knows_them_for_one_call(tiny: Engine) -> None:
    llm = SIFTLLM(engine=tiny)
    before = llm.complete(QUESTION).text
    trained = SIFTLLM(engine=tiny, train_on=(FACT,))
    for response in await every_way(trained, QUESTION):
        assert text_of(response) == "Tanaka" != before
        report = response.raw["training"]
        assert report["adapter_used"]
        assert len(report["losses"]) == report["steps"]
    assert llm.complete(QUESTION).text == before
    assert FACT not in repr(trained)
    answers = await asyncio.gather(*(trained.acomplete(QUESTION) for _ in range(8)))
    assert {answer.text for answer in answers} == {"Tanaka"}


async def test_stop_strings_and_length(tiny: Engine) -> None:
    for response in await every_way(SIFTLLM(engine=tiny), STUFFED, stop=["nak"]):
        assert text_of(response) == "Ta"
    both = SIFTLLM(engine=tiny, stop=["ak"])
    assert both.complete(STUFFED).text == "Tan"
    assert both.complete(STUFFED, stop=["n"]).text == "Ta"
    short = SIFTLLM(engine=tiny, max_tokens=1).complete(STUFFED)
    assert short.raw["finish_reason"] == "length"
    for response in await every_way(SIFTLLM(engine=tiny), STUFFED, max_tokens=1):
        assert text_of(response) == short.text


def test_metadata_is_the_models(tiny: Engine) -> None:
    assert SIFTLLM(engine=tiny).metadata == LLMMetadata(
        context_window=512, num_output=128, is_chat_model=False, model_name="sift_rag.tiny"
    )
    assert SIFTLLM(engine=tiny, max_tokens=7).metadata.num_output == 7


async def test_a_chat_template_gets_all_turns() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    said = [("system", "Be kind."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "Who?")]
    talk = [ChatMessage(role=MessageRole(role), content=text) for role, text in said]
    with Engine(build(), tokenizer, training=TRAINING, max_new_tokens=4) as engine:
        llm = SIFTLLM(engine=engine)
        assert llm.metadata.is_chat_model
        prompt = [{"role": role, "content": text} for role, text in said]
        plain = engine.answer("x", mode="closed_book", prompt=prompt)
        for response in [
            llm.chat(talk),
            await llm.achat(talk),
            list(llm.stream_chat(talk))[-1],
            [piece async for piece in await llm.astream_chat(talk)][-1],
        ]:
            assert response.message.content == plain.text
            assert response.message.role == MessageRole.ASSISTANT
            wanted = "<system>Be kind.<user>Hi<assistant>Yes?<user>Who?<assistant>"
            assert response.additional_kwargs["prompt_tokens"] == len(wanted)
        one = llm.complete("Who?")  # a prompt is one turn of the user, as LlamaIndex has it
        assert one.text == engine.answer("x", mode="closed_book", prompt=prompt[-1:]).text
        assert llm.predict(PromptTemplate("{who}?"), who="Who") == one.text
    with Engine(build(), tokenizer, max_new_tokens=4, chat=False) as engine:
        assert not SIFTLLM(engine=engine).metadata.is_chat_model


def test_own_words_around_prompt_and_chat(tiny: Engine) -> None:
    llm = SIFTLLM(
        engine=tiny,
        completion_to_prompt=lambda prompt: f"{FACT}\n\n{prompt}",
        messages_to_prompt=lambda messages: f"{FACT}\n\n{messages[-1].content}",
    )
    assert llm.complete(QUESTION).text == "Tanaka"
    assert llm.complete(QUESTION, formatted=True).text != "Tanaka"
    assert llm.chat(user(QUESTION)).message.content == "Tanaka"
    system = SIFTLLM(engine=tiny, system_prompt=FACT)
    assert system.predict(PromptTemplate(QUESTION)) == "Tanaka"


def test_what_it_cannot_do_is_said(tiny: Engine) -> None:
    llm = SIFTLLM(engine=tiny)
    with pytest.raises(ValueError, match="got one of role 'tool': tools are not supported"):
        llm.chat([*user("x"), ChatMessage(role=MessageRole.TOOL, content="3")])
    picture = ChatMessage(role=MessageRole.USER, blocks=[ImageBlock(image=b"x")])
    with pytest.raises(ValueError, match="reads text only, got a ImageBlock"):
        llm.chat([picture])
    with pytest.raises(TypeError, match="does not know the argument 'temperature'"):
        llm.complete("x", temperature=0.3)
    with pytest.raises(ValueError, match="There are no messages"):
        llm.chat([])
    with pytest.raises(ValueError, match="The question is empty"):
        llm.complete("")
    assert llm.complete(STUFFED).text == "Tanaka"


async def test_llama_indexs_own_events_come_once_a_call(tiny: Engine) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    counter = TokenCountingHandler(tokenizer=tiny.token_ids)
    llm = SIFTLLM(engine=tiny, callback_manager=CallbackManager([debug, counter]))
    responses = await every_way(llm, STUFFED)
    pairs = debug.get_llm_inputs_outputs()
    assert len(pairs) == len(responses) == 8
    usage = responses[0].additional_kwargs
    assert counter.prompt_llm_token_count == 8 * usage["prompt_tokens"]
    assert counter.completion_llm_token_count == 8 * usage["completion_tokens"]


@pytest.mark.parametrize("where", ["manager", "watched_by"])
async def test_a_handler_configures_and_watches_every_way(tiny: Engine, where: str) -> None:
    steps: list[int] = []

    class Watch(SIFTCallbackHandler):
        def on_train_step(self, event: Any, control: Any) -> None:
            super().on_train_step(event, control)
            steps.append(event["step"])

    handler = Watch(stop_when=lambda step: step["step"] == 2)
    given: dict[str, Any] = {
        "manager": {"callback_manager": CallbackManager([handler])},
        "watched_by": {"watched_by": (handler,), "callback_manager": CallbackManager([handler])},
    }
    llm = SIFTLLM(engine=tiny, train_on=(FACT,), **given[where])
    for response in await every_way(llm, QUESTION):
        assert response.raw["training"]["stopped"] == "callback"
    assert steps == [1, 2] * 8


def test_a_handler_that_raises_ends_the_call(tiny: Engine) -> None:
    class Refuse(SIFTCallbackHandler):
        def on_train_start(self, event: Any, control: Any) -> None:
            raise PermissionError("not on these")

    refused = CallbackManager([Refuse()])
    llm = SIFTLLM(engine=tiny, train_on=(FACT,), callback_manager=refused)
    with pytest.raises(PermissionError, match="not on these"):
        llm.complete(QUESTION)
    with pytest.raises(PermissionError, match="not on these"):
        list(llm.stream_complete(QUESTION))
    assert SIFTLLM(engine=tiny, train_on=(FACT,)).complete(QUESTION).text == "Tanaka"


class Ending(Callback):
    """Says why training ended; holds the second piece of an answer up until the stream is left."""

    def __init__(self) -> None:
        self.begun, self.over, self.left = (threading.Event() for _ in range(3))
        self.stopped: list[str] = []
        self.answered = False

    def on_train_step(self, event: Any, control: Any) -> None:
        self.begun.set()

    def on_train_end(self, event: Any, control: Any) -> None:
        self.stopped.append(event["stopped"])
        self.over.set()

    def on_token(self, event: Any, control: Any) -> None:
        if event["index"]:
            assert self.left.wait(20)

    def on_answer(self, event: Any, control: Any) -> None:
        self.answered = True


async def left_early(llm: SIFTLLM, watch: Ending, way: str, started: bool) -> None:
    """Ask for a stream and leave it: after its first piece, or, unread, once training has begun."""
    prompt = "The Korgost pump"  # which goes on for a hundred pieces
    pieces: Any
    if way.startswith("a"):
        asked = llm.astream_chat(user(prompt)) if way == "achat" else llm.astream_complete(prompt)
        pieces = await asked
        await (anext(pieces) if started else asyncio.to_thread(watch.begun.wait, 20))
        await pieces.aclose()
    else:
        pieces = llm.stream_chat(user(prompt)) if way == "chat" else llm.stream_complete(prompt)
        if started:
            next(pieces)
        else:
            assert watch.begun.wait(20)  # work begins at the call
        pieces.close()
    watch.left.set()


@pytest.mark.parametrize("way", ["complete", "chat", "acomplete", "achat"])
@pytest.mark.parametrize("started", [False, True])
async def test_an_abandoned_stream_stops_the_work(tiny: Engine, way: str, started: bool) -> None:
    """Even where a handler keeps the exception that ended it, and by it the frames."""
    debug = CallbackManager([LlamaDebugHandler(print_trace_on_end=False)])
    watch = Ending()
    llm = SIFTLLM(
        engine=tiny,
        train_on=(FACT,),
        training=None if started else ENDLESS,
        watched_by=(watch,),
        callback_manager=debug,
    )
    await left_early(llm, watch, way, started)
    assert (await SIFTLLM(engine=tiny).acomplete(STUFFED)).text == "Tanaka"  # after the other job
    assert watch.stopped == ["completed" if started else "cancelled"]
    assert not watch.answered


async def test_a_cancelled_task_frees_the_engine(tiny: Engine) -> None:
    watch = Ending()
    llm = SIFTLLM(engine=tiny, train_on=(FACT,), training=ENDLESS, watched_by=(watch,))

    async def streamed() -> None:
        async for _ in await llm.astream_complete(QUESTION):
            pass

    for ask in (lambda: llm.acomplete(QUESTION), lambda: llm.achat(user(QUESTION)), streamed):
        watch.begun.clear()
        watch.over.clear()
        task: Any = asyncio.ensure_future(ask())
        while not watch.begun.is_set():
            await asyncio.sleep(0.005)  # the loop goes on meanwhile
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(watch.over.wait, 20)
    assert watch.stopped == ["cancelled"] * 3
    assert (await SIFTLLM(engine=tiny).acomplete(STUFFED)).text == "Tanaka"


async def test_in_a_chat_engine(tiny: Engine) -> None:
    def engine() -> SimpleChatEngine:
        memory = ChatMemoryBuffer.from_defaults(token_limit=300, tokenizer_fn=tiny.token_ids)
        return SimpleChatEngine.from_defaults(llm=SIFTLLM(engine=tiny), memory=memory)

    chat = engine()
    assert chat.chat(STUFFED).response == "Tanaka"
    alone = [{"role": "user", "content": STUFFED}, {"role": "assistant", "content": "Tanaka"}]
    prompt = [*alone, {"role": "user", "content": QUESTION}]
    wanted = tiny.answer("x", mode="closed_book", prompt=prompt).text
    assert chat.chat(QUESTION).response == wanted
    assert (await engine().achat(STUFFED)).response == "Tanaka"
    assert "".join(engine().stream_chat(STUFFED).response_gen).strip() == "Tanaka"
    streamed = await engine().astream_chat(STUFFED)
    assert "".join([piece async for piece in streamed.async_response_gen()]).strip() == "Tanaka"


def test_events_are_llama_indexs_too(tiny: Engine) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = SIFTLLM(engine=tiny, callback_manager=CallbackManager([debug]))
    llm.predict(PromptTemplate(QUESTION))
    kinds = {event.event_type for event in debug.get_events()}
    assert {CBEventType.LLM, CBEventType.TEMPLATING} <= kinds
