"""The recorder of LlamaIndex: writes down what an engine does, and the engine does not notice."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from llama_index.core import MockEmbedding, PromptTemplate, VectorStoreIndex
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.llms import CustomLLM, LLMMetadata, MockLLM
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.query_engine import (
    CustomQueryEngine,
    RetrieverQueryEngine,
    SubQuestionQueryEngine,
)
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.response_synthesizers import SimpleSummarize
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import QueryEngineTool
from llama_index_sift import (
    SIFTLLM,
    SIFTPostprocessor,
    SIFTRecorder,
    sift_query_engine,
)

from sift_rag.cases import STAGES, Reply
from sift_rag.engine import Engine
from sift_rag.recording import Recorded
from sift_rag.replaying import read
from sift_rag.shadow import in_shadow

pytest_plugins = ["llama_index_watching"]
pytestmark = pytest.mark.usefixtures("no_defaults", "_nobody_listens_in_the_end")

WAIT = 120.0
TEXTS = [f"Pump {a} is inspected by {b}." for a, b in zip("ABCDEFGH", "STUVWXYZ", strict=True)]
QUESTION = "Who inspects pump A?"
EMBEDDING = MockEmbedding(embed_dim=8)
TEMPLATE = PromptTemplate("{context_str} Question: {query_str}")
WAYS = ("sync", "async", "stream", "astream")


@pytest.fixture(scope="module")
def tiny() -> Iterator[Engine]:
    with Engine.tiny() as engine:
        yield engine


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    nodes = [TextNode(text=text, id_=f"n{i}", metadata={"n": i}) for i, text in enumerate(TEXTS)]
    return VectorStoreIndex(nodes, embed_model=EMBEDDING)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recorded.jsonl"


@pytest.fixture
def _nobody_listens_in_the_end() -> Iterator[None]:
    root = get_dispatcher()
    before = (list(root.span_handlers), list(root.event_handlers))
    yield
    root.span_handlers, root.event_handlers = before


class Echo(CustomLLM):
    """Says the question again, so that answers tell where they belong."""

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        usage = {"prompt_tokens": 7, "completion_tokens": 2}
        return CompletionResponse(text=said(prompt), additional_kwargs=usage)

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        def pieces() -> Iterator[CompletionResponse]:
            for i, letter in enumerate(said(prompt)):
                yield CompletionResponse(text=said(prompt)[: i + 1], delta=letter)

        return pieces()


def said(prompt: str) -> str:
    return "Re: " + prompt.partition("Question: ")[2]


def plain(index: Any, way: str = "sync", llm: Any = None, **more: Any) -> RetrieverQueryEngine:
    """LlamaIndex's own engine."""
    synthesizer = SimpleSummarize(
        llm=llm or Echo(), text_qa_template=TEMPLATE, streaming="stream" in way
    )
    return RetrieverQueryEngine(index.as_retriever(similarity_top_k=3), synthesizer, **more)


def ours(index: Any, tiny: Engine, way: str = "sync", **more: Any) -> RetrieverQueryEngine:
    settings: dict[str, Any] = {"k": 2, "embed_model": EMBEDDING, "mode": "stuff"} | more
    return sift_query_engine(index, tiny, streaming="stream" in way, **settings)


async def ask(engine: Any, way: str, question: Any = QUESTION) -> tuple[str, Any]:
    """The answer and its response."""
    response = (
        engine.query(question) if way in ("sync", "stream") else await engine.aquery(question)
    )
    if way == "astream":
        return "".join([piece async for piece in response.async_response_gen()]), response
    if way == "stream":
        return "".join(response.response_gen), response
    return response.response, response


def only(path: Path, way: str = "app") -> Recorded:
    [row] = read(path).rows[way].values()
    return row


def reply(path: Path, way: str = "app") -> Reply:
    found = only(path, way).reply
    assert found
    return found


def sources(response: Any) -> list[tuple[str, str]]:
    return [(each.node_id, each.node.text) for each in response.source_nodes]


def passages(found: Reply) -> list[tuple[str, str]]:
    return [(each.id, each.text) for each in found.documents or ()]


@pytest.mark.parametrize("way", WAYS)
async def test_our_own_engine(index: Any, tiny: Engine, path: Path, way: str) -> None:
    wanted, _ = await ask(ours(index, tiny, way), way)
    engine = ours(index, tiny, way)
    with SIFTRecorder(path, engine) as recorder:
        text, response = await ask(engine, way)
    assert text == wanted
    assert only(path).question == QUESTION
    found = reply(path)
    assert found.text == wanted
    assert passages(found) == sources(response)
    assert len(passages(found)) == 2
    assert found.seconds.keys() == set(STAGES)
    assert all(value > 0 for stage, value in found.seconds.items() if stage != "train")
    assert found.seconds["train"] == 0.0
    assert found.tokens["in"] > found.tokens["out"] > found.tokens["trained"] == 0
    assert 0 <= (found.coverage or 0) <= 1
    assert (recorder.lost, recorder._open, len(recorder._spans)) == (0, {}, 0)


@pytest.mark.parametrize("way", WAYS)
async def test_an_engine_that_trains(index: Any, tiny: Engine, path: Path, way: str) -> None:
    engine = ours(index, tiny, way, mode="train", k=1)
    wanted, _ = await ask(engine, way)
    with SIFTRecorder(path, engine, "mine"):
        assert (await ask(engine, way))[0] == wanted
    found = reply(path, "mine")
    assert found.text == wanted
    assert found.seconds["train"] > 0
    assert sum(found.seconds.values()) < 2.5 * found.seconds["total"]
    assert found.tokens["trained"] > 0


@pytest.mark.parametrize("way", WAYS)
async def test_an_engine_of_llama_index(index: Any, path: Path, way: str) -> None:
    engine = plain(index, way)
    wanted, _ = await ask(engine, way)
    with SIFTRecorder(path, engine) as recorder:
        text, response = await ask(engine, way, QueryBundle(QUESTION))
    assert text == wanted == f"Re: {QUESTION}"
    found = reply(path)
    assert (only(path).question, found.text) == (QUESTION, wanted)
    assert passages(found) == sources(response)
    assert found.documents
    assert "n" in found.documents[0].metadata
    if "stream" in way:
        assert found.seconds.keys() == {"retrieve", "prefill", "decode", "total"}
    else:
        assert found.seconds.keys() == {"retrieve", "total"}
        assert found.tokens == {"in": 7, "out": 2}
    assert recorder.lost == 0


def test_other_models(index: Any, tiny: Engine, path: Path) -> None:
    for name, llm in {"mock": MockLLM(max_tokens=4), "sift": SIFTLLM(engine=tiny)}.items():
        engine = plain(index, llm=llm)
        with SIFTRecorder(path, engine, name):
            wanted = str(engine.query(QUESTION))
        assert reply(path, name).text == wanted
    assert {"prefill", "decode"} < reply(path, "sift").seconds.keys()
    assert reply(path, "sift").tokens["out"] > 0


def test_a_model_that_calls_another_one_counts_once(index: Any, path: Path) -> None:
    """The chat of a `CustomLLM` is a completion inside."""

    class Chat(Echo):
        @property
        def metadata(self) -> LLMMetadata:
            return LLMMetadata(is_chat_model=True)

    engine = plain(index, llm=Chat())
    with SIFTRecorder(path, engine, "chat"):
        engine.query(QUESTION)
    assert reply(path, "chat").tokens == {"in": 7, "out": 2}


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_the_nodes_after_the_postprocessors(index: Any, path: Path, way: str) -> None:
    last = SIFTPostprocessor(top_n=1, embed_model=EMBEDDING, vector_store=index)
    engine = plain(index, way, node_postprocessors=[last])
    with SIFTRecorder(path, engine):
        _, response = await ask(engine, way)
    assert passages(reply(path)) == sources(response)
    assert len(passages(reply(path))) == 1
    assert reply(path).seconds["select"] > 0
    assert reply(path).seconds["retrieve"] > 0


def test_an_index_without_nodes_and_an_empty_answer(path: Path) -> None:
    empty = VectorStoreIndex([], embed_model=EMBEDDING)
    engine = plain(empty)
    with SIFTRecorder(path, engine):
        engine.query(QUESTION)
    assert (reply(path).text, reply(path).documents) == ("Empty Response", ())

    class Silent(CustomQueryEngine):
        def custom_query(self, query_str: str) -> str:
            return ""

    silent = Silent()
    with SIFTRecorder(path, silent, "silent"):
        silent.query(QUESTION)
    assert reply(path, "silent").text == ""


@pytest.mark.parametrize("use_async", [False, True])
def test_an_engine_of_engines_is_one_request(index: Any, path: Path, use_async: bool) -> None:
    class Two(BaseQuestionGenerator):
        def _get_prompts(self) -> Any:
            return {}

        def _update_prompts(self, prompts: Any) -> None:
            pass

        def generate(self, tools: Any, query: Any) -> list[SubQuestion]:
            return [SubQuestion(sub_question=q, tool_name="t") for q in ("One?", "Two?")]

        async def agenerate(self, tools: Any, query: Any) -> list[SubQuestion]:
            return self.generate(tools, query)

    inner = plain(index)
    engine = SubQuestionQueryEngine(
        question_gen=Two(),
        response_synthesizer=SimpleSummarize(llm=Echo(), text_qa_template=TEMPLATE),
        query_engine_tools=[QueryEngineTool.from_defaults(inner, name="t")],
        use_async=use_async,
        verbose=False,
    )
    with SIFTRecorder(path, engine), SIFTRecorder(path, inner, "inner"):
        wanted = str(engine.query(QUESTION))
    assert reply(path).text == wanted
    assert reply(path).tokens == {"in": 21, "out": 6}
    asked = {row.question for row in read(path).rows["inner"].values()}
    assert asked == {"One?", "Two?"}


class Bad(Echo):
    error: Any = ValueError("no")

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        raise self.error

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        def pieces() -> Iterator[CompletionResponse]:
            yield CompletionResponse(text="a", delta="a")
            raise self.error

        return pieces()


@pytest.mark.parametrize("way", WAYS)
async def test_errors_are_raised_and_recorded(index: Any, path: Path, way: str) -> None:
    error = ValueError("no")
    engine = plain(index, way, Bad(error=error))
    with SIFTRecorder(path, engine) as recorder:
        with pytest.raises(ValueError, match="no") as caught:
            await ask(engine, way)
        assert caught.value is error
        assert (only(path).error, only(path).question) == ("ValueError: no", QUESTION)
        assert (recorder.lost, recorder._open) == (0, {})


async def test_a_cancelled_task(index: Any, path: Path) -> None:
    class Slow(CustomQueryEngine):
        def custom_query(self, query_str: str) -> str:
            return ""

        async def acustom_query(self, query_str: str) -> str:
            await asyncio.sleep(1e6)
            return ""

    engine = Slow()
    with SIFTRecorder(path, engine):
        task = asyncio.create_task(engine.aquery(QUESTION))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert only(path).error == "CancelledError: "


async def test_streams_are_recorded_at_their_end_and_only_then(index: Any, path: Path) -> None:
    engine = plain(index, "stream")
    with SIFTRecorder(path, engine) as recorder:
        response: Any = engine.query(QUESTION)
        assert next(response.response_gen) == "R"
        assert not path.exists()
        assert "".join(response.response_gen) == f"e: {QUESTION}"
        assert reply(path).text == f"Re: {QUESTION}"
        left: Any = engine.query(QUESTION)
        next(left.response_gen)
        left.response_gen.close()
        engine.query(QUESTION)  # never read
        aleft: Any = await engine.aquery(QUESTION)
        pieces = aleft.async_response_gen()
        await anext(pieces)
        await pieces.aclose()
        await aleft.response_gen.aclose()
        assert len(read(path).cases) == 1
        assert str(engine.query(QUESTION)) == f"Re: {QUESTION}"
        assert len(read(path).cases) == 2
        del left, aleft, pieces, response
        gc.collect()
        assert (recorder.lost, recorder._open, len(recorder._spans)) == (0, {}, 0)


def test_concurrent_threads(index: Any, path: Path) -> None:
    engine = plain(index)
    questions = [f"Who inspects pump {n}?" for n in range(100)]
    with SIFTRecorder(path, engine) as recorder, ThreadPoolExecutor(8) as pool:
        list(pool.map(engine.query, questions))
    rows = {row.question: row.reply for row in read(path).rows["app"].values()}
    assert {q: r and r.text for q, r in rows.items()} == {q: f"Re: {q}" for q in questions}
    assert all(r and r.tokens == {"in": 7, "out": 2} for r in rows.values())
    assert recorder.lost == 0


@pytest.mark.parametrize("way", ["async", "astream"])
async def test_concurrent_tasks(index: Any, path: Path, way: str) -> None:
    engine = plain(index, way)
    questions = [f"Who inspects pump {n}?" for n in range(40)]
    with SIFTRecorder(path, engine) as recorder:
        await asyncio.gather(*(ask(engine, way, question) for question in questions))
    rows = read(path).rows["app"].values()
    assert {r.question: r.reply and r.reply.text for r in rows} == {
        q: f"Re: {q}" for q in questions
    }
    assert recorder.lost == 0


def test_only_the_one_engine_while_it_is_open(index: Any, path: Path) -> None:
    engine, other = plain(index), plain(index)
    other.query(QUESTION)
    recorder = SIFTRecorder(path, engine)
    other.query(QUESTION)
    other.retrieve(QueryBundle(QUESTION))
    assert not path.exists()
    engine.query(QUESTION)
    recorder.close()
    engine.query(QUESTION)
    assert len(read(path).cases) == 1
    recorder.close()


def test_a_thousand_queries_leave_nothing_behind(path: Path) -> None:
    class Text(str):
        """One that can be looked for."""

    class Quick(CustomQueryEngine):
        def custom_query(self, query_str: str) -> str:
            if int(query_str) % 10 == 0:
                raise ValueError("no")
            return "x"

    engine = Quick()
    given: list[weakref.ref[Text]] = []
    with SIFTRecorder(path, engine, share=0.5) as recorder:
        for n in range(1000):
            question = Text(n)
            given.append(weakref.ref(question))
            try:
                engine.query(question)
            except ValueError:
                assert n % 10 == 0
        del question
        gc.collect()
        assert (recorder._open, len(recorder._spans), recorder.lost) == ({}, 0, 0)
        assert not [each for each in given if each() is not None]
    assert 400 < len(read(path).cases) < 600


def test_redaction(index: Any, path: Path) -> None:
    engine = plain(index)
    with SIFTRecorder(path, engine, redact=lambda text: text.replace("ump", "[thing]")):
        engine.query(QUESTION)
    assert b"ump" not in path.read_bytes()


def test_texts_that_are_no_text(path: Path) -> None:
    class Odd(CustomQueryEngine):
        def custom_query(self, query_str: str) -> Any:
            from llama_index.core.base.response.schema import Response

            node = TextNode(text="a", metadata={"x": object})
            node.text = "a\ud800"
            return Response("\udfff", [NodeWithScore(node=node)])

    engine = Odd()
    with SIFTRecorder(path, engine) as recorder:
        engine.query("q\ud800")
    assert recorder.lost == 0
    assert (only(path).question, reply(path).text) == ("q?", "?")
    assert [text for _, text in passages(reply(path))] == ["a?"]


@pytest.mark.parametrize("way", WAYS)
async def test_what_goes_wrong_does_not_reach_the_engine(
    index: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    engine = plain(index, way)
    wanted = (await ask(engine, way))[0]
    other = plain(index)
    with SIFTRecorder(tmp_path / "no" / "a", engine, shadow=other, shadow_share=1.0) as recorder:
        with pytest.warns(RuntimeWarning, match="No such file"):
            assert (await ask(engine, way))[0] == wanted
        assert await asyncio.to_thread(recorder.flush, WAIT)
        assert recorder.lost == 2
    monkeypatch.setattr("llama_index_sift.watching.Request.reply", lambda *_: 1 / 0)
    bad = SIFTRecorder(tmp_path / "b", engine)
    with pytest.warns(RuntimeWarning, match="ZeroDivisionError"):
        assert (await ask(engine, way))[0] == wanted
    bad.close()
    assert bad.lost == 1


def shadowed(path: Path, engine: Any, shadow: Any, **more: Any) -> SIFTRecorder:
    return SIFTRecorder(path, engine, shadow=shadow, shadow_share=1.0, **more)


@pytest.mark.parametrize("way", WAYS)
async def test_a_shadow_answers_beside_it(index: Any, tiny: Engine, path: Path, way: str) -> None:
    engine = ours(index, tiny, way)
    other = ours(index, tiny, way, mode="train", k=1)
    wanted, _ = await ask(engine, way)
    expected, there = await ask(other, way)
    with shadowed(path, engine, other) as recorder:
        assert (await ask(engine, way, QueryBundle(QUESTION)))[0] == wanted
        assert await asyncio.to_thread(recorder.flush, WAIT)
    found = read(path)
    assert found.rows["app"].keys() == found.rows["shadow"].keys()
    assert (reply(path).text, only(path, "shadow").question) == (wanted, QUESTION)
    two = reply(path, "shadow")
    assert two.text == expected
    assert passages(two) == sources(there)
    assert two.seconds.keys() == set(STAGES)
    assert two.seconds["train"] > 0
    assert two.tokens["trained"] > 0
    assert reply(path).tokens["trained"] == 0
    assert recorder.lost == 0


class Waiting(CustomQueryEngine):
    """Waits for what only happens after the first has answered."""

    answered: Any

    def custom_query(self, query_str: str) -> str:
        assert in_shadow()
        assert self.answered.wait(WAIT)
        return "late"


@pytest.mark.parametrize("way", WAYS)
async def test_the_first_answers_while_its_shadow_hangs(index: Any, path: Path, way: str) -> None:
    engine, answered = plain(index, way), threading.Event()
    with shadowed(path, engine, Waiting(answered=answered)) as recorder:
        assert (await ask(engine, way))[0] == f"Re: {QUESTION}"
        assert not recorder.flush(0)
        answered.set()
        assert await asyncio.to_thread(recorder.flush, WAIT)
    assert (reply(path).text, reply(path, "shadow").text) == (f"Re: {QUESTION}", "late")


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_shadow_raises_is_a_row(index: Any, path: Path, way: str) -> None:
    engine = plain(index, way)
    with shadowed(path, engine, plain(index, "sync", Bad(error=SystemExit(3)))) as recorder:
        assert (await ask(engine, way))[0] == f"Re: {QUESTION}"
        assert await asyncio.to_thread(recorder.flush, WAIT)
        assert only(path, "shadow").error == "SystemExit: 3"
        recorder.close(WAIT)
        assert (await ask(engine, way))[0] == f"Re: {QUESTION}"
    assert recorder.lost == 0


def test_a_shadow_hears_of_failures_too(index: Any, path: Path) -> None:
    engine = plain(index, llm=Bad())
    with shadowed(path, engine, plain(index)) as recorder:
        with pytest.raises(ValueError, match="no"):
            engine.query(QUESTION)
        assert recorder.flush(WAIT)
    assert only(path).error == "ValueError: no"
    assert reply(path, "shadow").text == f"Re: {QUESTION}"


def test_recorders_that_shadow_one_another_do_not_run_away(index: Any, path: Path) -> None:
    one, two = plain(index), plain(index)
    with (
        shadowed(path, one, two, way="one") as first,
        shadowed(path, two, one, way="two") as second,
    ):
        one.query(QUESTION)
        assert first.flush(WAIT)
        assert second.flush(WAIT)
    found = read(path)
    assert {way: len(rows) for way, rows in found.rows.items()} == {"one": 1, "shadow": 1}
    shadow = reply(path, "shadow")
    assert shadow.tokens == {"in": 7, "out": 2}
    assert (first.lost, second.lost) == (0, 0)


def test_what_is_no_engine_is_refused(index: Any, path: Path) -> None:
    with pytest.raises(TypeError, match=r"query_engine must be a query engine .* got Vector"):
        SIFTRecorder(path, index)
    with pytest.raises(
        TypeError, match="shadow must be a query engine of LlamaIndex, got function"
    ):
        SIFTRecorder(path, plain(index), shadow=said)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="share is 7"):
        SIFTRecorder(path, plain(index), share=7)
