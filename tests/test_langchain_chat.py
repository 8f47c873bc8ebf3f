"""The chat model: LangChain's own suites on the bundled model, and what they do not ask."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import TRAINING, build, byte_tokenizer
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.globals import set_llm_cache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_sift import ChatSIFT, SIFTCallbackHandler
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from sift_rag.engine import Engine

FACT = "The Korgost pump is inspected by Tanaka."
QUESTION = "Question: Who inspects the Korgost pump?\nAnswer:"


@pytest.fixture(scope="module")
def tiny() -> Iterator[Engine]:
    with Engine.tiny() as engine:
        yield engine


@pytest.fixture(scope="class")
def _for_suite(request: pytest.FixtureRequest, tiny: Engine) -> None:
    request.cls.engine = tiny


class Suite:
    engine: Engine

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatSIFT

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine, "max_tokens": 20}

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def has_structured_output(self) -> bool:
        return False


@pytest.mark.usefixtures("_for_suite")
class TestUnit(Suite, ChatModelUnitTests):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"engine": self.engine}  # the suite sets max_tokens


@pytest.mark.usefixtures("_for_suite")
class TestIntegration(Suite, ChatModelIntegrationTests):
    pass


def test_it_answers_as_the_engine_does(tiny: Engine) -> None:
    prompt = f"{FACT}\n\n{QUESTION}"
    alone = tiny.answer("x", mode="closed_book", prompt=prompt)
    model = ChatSIFT(engine=tiny)
    message = model.invoke(prompt)
    assert message.content == alone.text == "Tanaka"
    assert message.response_metadata["finish_reason"] == "stop"
    assert message.response_metadata["model_name"] == "sift_rag.tiny"
    assert message.usage_metadata is not None
    assert message.usage_metadata["input_tokens"] == alone.usage["prompt_tokens"]
    assert model.get_num_tokens(prompt) == alone.usage["prompt_tokens"]
    pieces = list(model.stream(prompt))
    assert "".join(str(piece.content) for piece in pieces) == "Tanaka"
    assert [bool(piece.usage_metadata) for piece in pieces].count(True) == 1


def test_trained_on_texts_it_knows_them_for_one_call(tiny: Engine) -> None:
    model = ChatSIFT(engine=tiny)
    before = model.invoke(QUESTION).content
    trained = ChatSIFT(engine=tiny, train_on=(FACT,))
    message = trained.invoke(QUESTION)
    assert message.content == "Tanaka" != before
    report = message.response_metadata["training"]
    assert report["adapter_used"]
    assert len(report["losses"]) == report["steps"]
    assert "".join(str(piece.content) for piece in trained.stream(QUESTION)) == "Tanaka"
    assert model.invoke(QUESTION).content == before
    assert FACT not in repr(trained)


async def test_async_is_the_same(tiny: Engine) -> None:
    trained = ChatSIFT(engine=tiny, train_on=(FACT,))
    assert (await trained.ainvoke(QUESTION)).content == "Tanaka"
    pieces = [piece async for piece in trained.astream(QUESTION)]
    assert "".join(str(piece.content) for piece in pieces) == "Tanaka"
    answers = await asyncio.gather(*(trained.ainvoke(QUESTION) for _ in range(8)))
    assert {answer.content for answer in answers} == {"Tanaka"}


def test_stop_strings_and_length(tiny: Engine) -> None:
    prompt = f"{FACT}\n\n{QUESTION}"
    assert ChatSIFT(engine=tiny).invoke(prompt, stop=["nak"]).content == "Ta"
    other_name = ChatSIFT(engine=tiny, stop_sequences=["ak"])  # type: ignore[call-arg]
    assert other_name.invoke(prompt).content == "Tan"
    both = ChatSIFT(engine=tiny, stop=["ak"]).bind(stop=["n"])
    assert both.invoke(prompt).content == "Ta"
    short = ChatSIFT(engine=tiny, max_tokens=1).invoke(prompt)
    assert short.response_metadata["finish_reason"] == "length"
    assert ChatSIFT(engine=tiny).invoke(prompt, max_tokens=1).content == short.content


def test_a_chat_template_gets_all_turns() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    talk = [SystemMessage("Be kind."), HumanMessage("Hi"), AIMessage("Yes?"), HumanMessage("Who?")]
    with Engine(build(), tokenizer, training=TRAINING, max_new_tokens=4) as engine:
        asked = ChatSIFT(engine=engine).invoke(talk)
        plain = engine.answer(
            "x",
            mode="closed_book",
            prompt=[
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Who?"},
            ],
        )
    assert asked.content == plain.text
    assert asked.usage_metadata is not None
    wanted = "<system>Be kind.<user>Hi<assistant>Yes?<user>Who?<assistant>"
    assert asked.usage_metadata["input_tokens"] == len(wanted)


def test_content_blocks_of_text_are_joined(tiny: Engine) -> None:
    blocks = [{"type": "text", "text": FACT + "\n\n"}, {"type": "text", "text": QUESTION}]
    assert ChatSIFT(engine=tiny).invoke([HumanMessage(blocks)]).content == "Tanaka"  # type: ignore[arg-type]


def test_what_it_cannot_do_is_said(tiny: Engine) -> None:
    model = ChatSIFT(engine=tiny)
    with pytest.raises(ValueError, match="got one of type 'tool': tools are not supported"):
        model.invoke([HumanMessage("x"), ToolMessage("3", tool_call_id="1")])
    with pytest.raises(ValueError, match="reads text only, got a block of type 'image'"):
        model.invoke([HumanMessage([{"type": "image", "url": "http://x"}])])
    with pytest.raises(TypeError, match="does not know the argument 'temperature'"):
        model.invoke("x", temperature=0.3)
    with pytest.raises(NotImplementedError):
        model.bind_tools([])
    with pytest.raises(ValueError, match="The question is empty"):
        model.invoke("")


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
async def test_a_handler_configures_and_watches_every_way(tiny: Engine, way: str) -> None:
    steps: list[int] = []

    class Watch(SIFTCallbackHandler):
        def on_train_step(self, event: Any, control: Any) -> None:
            super().on_train_step(event, control)
            steps.append(event["step"])

    model = ChatSIFT(engine=tiny, train_on=(FACT,))
    config: Any = {"callbacks": [Watch(stop_when=lambda step: step["step"] == 2)]}
    if way == "invoke":
        model.invoke(QUESTION, config)
    elif way == "stream":
        list(model.stream(QUESTION, config))
    elif way == "ainvoke":
        await model.ainvoke(QUESTION, config)
    else:
        _ = [piece async for piece in model.astream(QUESTION, config)]
    assert steps == [1, 2]


def test_a_handler_of_the_constructor(tiny: Engine) -> None:
    handler = SIFTCallbackHandler(stop_when=lambda step: True)
    model = ChatSIFT(engine=tiny, train_on=(FACT,), callbacks=[handler])
    assert model.invoke(QUESTION).response_metadata["training"]["steps"] == 1
    last = list(model.stream(QUESTION))[-1]
    assert last.response_metadata["training"]["steps"] == 1


def test_the_cache_knows_what_was_trained_on(tiny: Engine) -> None:
    """langchain's key is the prompt and the model's parameters: the texts are in neither."""
    set_llm_cache(InMemoryCache())
    try:
        told = {
            name: ChatSIFT(engine=tiny, train_on=(f"The Korgost pump is inspected by {name}.",))
            for name in ("Tanaka", "Petrov")
        }
        answers = {name: model.invoke(QUESTION).content for name, model in told.items()}
        assert answers == {"Tanaka": "Tanaka", "Petrov": "Petrov"}
        again = told["Tanaka"].invoke(QUESTION)
        assert again.content == "Tanaka"
        assert again.usage_metadata is not None
        assert again.usage_metadata.get("total_tokens") is not None
    finally:
        set_llm_cache(None)


def test_a_handler_is_not_in_the_caches_key_so_it_goes_past_it(tiny: Engine) -> None:
    set_llm_cache(InMemoryCache())
    try:
        model = ChatSIFT(engine=tiny, train_on=(FACT,))
        model.invoke(QUESTION)
        handler = SIFTCallbackHandler(stop_when=lambda step: True)
        fresh = model.invoke(QUESTION, {"callbacks": [handler]})
        assert fresh.response_metadata["training"]["steps"] == 1
        assert model.invoke(QUESTION).response_metadata["training"]["steps"] > 1
    finally:
        set_llm_cache(None)


def test_an_abandoned_stream_frees_the_engine(tiny: Engine) -> None:
    model = ChatSIFT(engine=tiny, train_on=(FACT,))
    pieces = model.stream(QUESTION)
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]
    assert model.invoke(QUESTION).content == "Tanaka"


async def test_a_cancelled_call_frees_the_engine(tiny: Engine) -> None:
    model = ChatSIFT(engine=tiny, train_on=(FACT,))
    started = asyncio.Event()
    loop = asyncio.get_running_loop()

    class Watch(SIFTCallbackHandler):
        def on_train_step(self, event: Any, control: Any) -> None:
            loop.call_soon_threadsafe(started.set)

    task = asyncio.create_task(model.ainvoke(QUESTION, {"callbacks": [Watch()]}))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await model.ainvoke(QUESTION)).content == "Tanaka"


def test_a_handler_that_raises_ends_the_call(tiny: Engine) -> None:
    class Refuse(SIFTCallbackHandler):
        def on_train_start(self, event: Any, control: Any) -> None:
            raise PermissionError("not on these")

    model = ChatSIFT(engine=tiny, train_on=(FACT,))
    with pytest.raises(PermissionError, match="not on these"):
        model.invoke(QUESTION, {"callbacks": [Refuse()]})
    assert model.invoke(QUESTION).content == "Tanaka"


def test_langsmith_is_told_what_it_asks_for(tiny: Engine) -> None:
    seen: dict[str, Any] = {}

    class Keep(BaseCallbackHandler):
        def on_chat_model_start(
            self, serialized: Any, messages: Any, *, run_id: Any, **kwargs: Any
        ) -> None:
            seen.update(kwargs["metadata"])

    ChatSIFT(engine=tiny, max_tokens=3).invoke("x", {"callbacks": [Keep()]}, stop=["q"])
    assert seen["ls_provider"] == "sift_rag"
    assert seen["ls_model_name"] == "sift_rag.tiny"
    assert (seen["ls_max_tokens"], seen["ls_temperature"], seen["ls_stop"]) == (3, 0.0, ["q"])
