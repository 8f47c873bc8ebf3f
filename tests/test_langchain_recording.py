"""The recorder of LangChain: it writes down what a chain does, and the chain does not notice."""

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_sift import (
    ChatSIFT,
    SIFTCompressor,
    SIFTRecorder,
    SIFTRetriever,
    create_ttt_documents_chain,
)

from sift_rag.cases import STAGES, Reply
from sift_rag.engine import Engine
from sift_rag.recording import Recorded
from sift_rag.replaying import Recording, read

WAIT = 120.0
TEXTS = [
    f"Pump {name} is inspected by {who}." for name, who in zip("ABCDEFGH", "STUVWXYZ", strict=True)
]
QUESTION = "Who inspects pump A?"
PROMPT = PromptTemplate.from_template("{context}\n\nQuestion: {input}\nAnswer:")
ALONE = PromptTemplate.from_template("Question: {input}\nAnswer:")
EMBEDDINGS = DeterministicFakeEmbedding(size=16)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Engine]:
    with Engine.tiny() as engine:
        yield engine


@pytest.fixture(scope="module")
def store() -> InMemoryVectorStore:
    return InMemoryVectorStore.from_texts(TEXTS, EMBEDDINGS, [{"n": i} for i in range(8)])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "recorded.jsonl"


def echo(prompt: Any) -> str:
    return "Answer to " + str(prompt.to_string())[-40:]


def lcel(store: InMemoryVectorStore) -> Runnable[Any, Any]:
    """From a question to a text that depends on it and the passages."""
    shown = store.as_retriever(search_kwargs={"k": 3}) | (
        lambda docs: "\n".join(each.page_content for each in docs)
    )
    chain: Any = {"context": shown, "input": RunnablePassthrough()} | PROMPT
    whole: Runnable[Any, Any] = chain | RunnableLambda(echo)
    return whole


def retrieval(retriever: Any, documents_chain: Any) -> Runnable[Any, Any]:
    found: Any = RunnableLambda(lambda x: x["input"]) | retriever
    whole: Runnable[Any, Any] = create_retrieval_chain(found, documents_chain)
    return whole


def stuffed(tiny: Engine) -> Runnable[Any, Any]:
    return create_stuff_documents_chain(ChatSIFT(engine=tiny), PROMPT)


def only(path: Path, way: str = "app") -> Recorded:
    [row] = read(path).rows[way].values()
    return row


def reply(path: Path, way: str = "app") -> Reply:
    found = only(path, way).reply
    assert found
    return found


def passages(found: Reply) -> list[str] | None:
    return None if found.documents is None else [each.text for each in found.documents]


def watched(recorder: BaseCallbackHandler) -> Any:
    return {"callbacks": [recorder]}


async def ask(chain: Any, how: str, inputs: Any, config: Any = None) -> Any:
    if how == "invoke":
        return chain.invoke(inputs, config)
    if how == "ainvoke":
        return await chain.ainvoke(inputs, config)
    if how == "batch":
        return chain.batch([inputs], config)[0]
    if how == "abatch":
        return (await chain.abatch([inputs], config))[0]
    pieces = (
        list(chain.stream(inputs, config))
        if how == "stream"
        else [piece async for piece in chain.astream(inputs, config)]
    )
    whole = pieces[0]
    for piece in pieces[1:]:
        whole = whole + piece
    return whole


HOW = ("invoke", "ainvoke", "batch", "abatch", "stream", "astream")


@pytest.mark.parametrize("how", HOW)
async def test_a_retrieval_chain(
    store: InMemoryVectorStore, tiny: Engine, path: Path, how: str
) -> None:
    chain = retrieval(SIFTRetriever(vectorstore=store, k=2), stuffed(tiny))
    wanted = await ask(chain, how, {"input": QUESTION})
    recorder = SIFTRecorder(path)
    got = await ask(chain, how, {"input": QUESTION}, watched(recorder))
    assert got == wanted
    found = reply(path)
    assert only(path).question == QUESTION
    assert found.text == wanted["answer"]
    assert passages(found) == [each.page_content for each in wanted["context"]]
    assert found.documents
    assert found.documents[0].metadata["sift_rank"] == 1
    assert found.seconds.keys() == set(STAGES)
    assert all(value > 0 for stage, value in found.seconds.items() if stage != "train")
    assert sum(found.seconds.values()) < 2 * found.seconds["total"]
    assert found.tokens.keys() == {"in", "out", "trained"}
    assert found.tokens["in"] > found.tokens["out"] > found.tokens["trained"] == 0
    assert 0 <= (found.coverage or 0) <= 1
    assert (recorder.lost, recorder._runs) == (0, {})


@pytest.mark.parametrize("how", HOW)
async def test_an_expression(store: InMemoryVectorStore, path: Path, how: str) -> None:
    chain = lcel(store)
    wanted = await ask(chain, how, QUESTION)
    recorder = SIFTRecorder(path, way="mine")
    assert await ask(chain.with_config(callbacks=[recorder]), how, QUESTION) == wanted
    found = reply(path, "mine")
    assert (only(path, "mine").question, found.text) == (QUESTION, wanted)
    assert len(passages(found) or ()) == 3
    assert {"retrieve", "total"} == found.seconds.keys()
    assert recorder._runs == {}


@pytest.mark.parametrize("mode", ["train", "both"])
async def test_training_is_timed_and_counted(tiny: Engine, path: Path, mode: Any) -> None:
    chain = create_ttt_documents_chain(tiny, PROMPT, ttt_prompt=ALONE, mode=mode)
    documents = [Document(text, id=str(i)) for i, text in enumerate(TEXTS[:2])]
    inputs = {"input": QUESTION, "context": documents}
    for how in ("invoke", "astream"):
        wanted = await ask(chain, how, inputs)
        assert await ask(chain, how, inputs, watched(SIFTRecorder(path, how))) == wanted
        found = reply(path, how)
        assert found.text == wanted
        assert found.seconds.keys() == {"train", "prefill", "decode", "total"}
        assert found.tokens["trained"] > 0
        assert found.documents
        assert [(each.id, each.text) for each in found.documents] == [
            (str(i), text) for i, text in enumerate(TEXTS[:2])
        ]


def test_the_passages_of_a_compressor(store: InMemoryVectorStore, tiny: Engine, path: Path) -> None:
    base = store.as_retriever(search_kwargs={"k": 8})
    compressor = SIFTCompressor(embeddings=EMBEDDINGS, k=2)
    retriever = ContextualCompressionRetriever(base_retriever=base, base_compressor=compressor)
    chain = retrieval(retriever, stuffed(tiny))
    wanted = chain.invoke({"input": QUESTION}, watched(SIFTRecorder(path)))
    assert len(wanted["context"]) == 2
    assert passages(reply(path)) == [each.page_content for each in wanted["context"]]
    assert reply(path).seconds["retrieve"] > 0


def test_the_passages_of_a_reranker_that_is_a_function(
    store: InMemoryVectorStore, path: Path
) -> None:
    shown: list[str] = []

    def show(docs: list[Document]) -> str:
        shown.extend(each.page_content for each in docs)
        return ""

    best = store.as_retriever(search_kwargs={"k": 8}) | (lambda docs: docs[::-1][:2]) | show
    chain: Any = {"context": best, "input": RunnablePassthrough()} | PROMPT | echo
    chain.invoke(QUESTION, watched(SIFTRecorder(path)))
    assert passages(reply(path)) == shown
    assert len(shown) == 2


def test_the_passages_of_a_state(store: InMemoryVectorStore, path: Path) -> None:
    """As graphs hand it on: each step gives the state back, the reranker's with fewer passages."""
    retriever = store.as_retriever(search_kwargs={"k": 8})

    def retrieve(state: Any, config: Any) -> Any:
        return {**state, "documents": retriever.invoke(state["question"], config)}

    def rerank(state: Any) -> Any:
        return {**state, "documents": state["documents"][:1]}

    chain: Any = RunnableLambda(retrieve) | rerank | (lambda state: {**state, "answer": "x"})
    wanted = chain.invoke({"question": QUESTION}, watched(SIFTRecorder(path)))
    assert passages(reply(path)) == [wanted["documents"][0].page_content]
    assert reply(path).text == "x"


def test_a_retriever_that_finds_nothing(path: Path) -> None:
    retriever = InMemoryVectorStore(EMBEDDINGS).as_retriever()
    chain = retrieval(retriever, RunnableLambda(lambda x: "nothing"))
    chain.invoke({"input": QUESTION}, watched(SIFTRecorder(path)))
    assert passages(reply(path)) == []


def test_no_retriever_at_all(path: Path) -> None:
    RunnableLambda(lambda x: x).invoke("hello", watched(SIFTRecorder(path)))
    assert (reply(path).text, reply(path).documents) == ("hello", None)


@pytest.mark.parametrize(
    ("inputs", "outputs", "question", "answer"),
    [
        ({"question": "q", "chat_history": [HumanMessage("h")]}, AIMessage("a"), "q", "a"),
        ({"query": "q", "k": 3}, {"result": "a", "query": "q"}, "q", "a"),
        ({"whatever": "q"}, {"output": AIMessage("a")}, "q", "a"),
        ([SystemMessage("s"), HumanMessage("q"), AIMessage("x")], [AIMessage("a")], "q", "a"),
        ({"messages": [HumanMessage("q")]}, {"messages": [AIMessage("a")]}, "q", "a"),
        (
            HumanMessage([{"type": "text", "text": "q"}]),
            {"x": 1, "é": [2]},
            "q",
            '{"x": 1, "é": [2]}',
        ),
        (PROMPT.format_prompt(context="c", input="q"), 3, "c\n\nQuestion: q\nAnswer:", "3"),
        ({"input": {"question": "q"}}, {"response": ""}, "q", ""),
    ],
)
def test_where_question_and_answer_lie(
    path: Path, inputs: Any, outputs: Any, question: str, answer: str
) -> None:
    RunnableLambda(lambda _: outputs).invoke(inputs, watched(SIFTRecorder(path)))
    assert (only(path).question, reply(path).text) == (question, answer)


def test_an_input_without_a_question(path: Path) -> None:
    class Own(SIFTRecorder):
        def question(self, inputs: Any) -> str | None:
            return str(inputs["a"] + inputs["b"])

        def answer(self, outputs: Any) -> str:
            return outputs * 2  # type: ignore[no-any-return]

    chain: Any = RunnableLambda(lambda _: "x")
    recorder = SIFTRecorder(path)
    inputs = {"a": "q", "b": "r"}
    with pytest.warns(RuntimeWarning, match="no question was found in a dict; override"):
        assert chain.invoke(inputs, watched(recorder)) == "x"
    assert (recorder.lost, path.exists()) == (1, False)
    assert chain.invoke(inputs, watched(Own(path))) == "x"
    assert (only(path).question, reply(path).text) == ("qr", "xx")


def test_models_by_themselves(tiny: Engine, path: Path) -> None:
    ChatSIFT(engine=tiny).invoke(
        [HumanMessage("Question: Where?\nAnswer:")], watched(SIFTRecorder(path))
    )
    assert only(path).question == "Question: Where?\nAnswer:"
    assert {"prefill", "decode", "total"} <= reply(path).seconds.keys()
    FakeListLLM(responses=["b"]).invoke("q", watched(SIFTRecorder(path, "llm")))
    assert (only(path, "llm").question, reply(path, "llm").text) == ("q", "b")


@pytest.mark.parametrize("how", ["stream", "astream"])
async def test_time_to_the_first_token_of_any_model(path: Path, how: str) -> None:
    model = GenericFakeChatModel(messages=iter([AIMessage("one two three")]))
    chain = ChatPromptTemplate.from_template("{input}") | model | StrOutputParser()
    got = await ask(chain, how, {"input": "q"}, watched(SIFTRecorder(path)))
    assert got == reply(path).text == "one two three"
    assert reply(path).seconds.keys() == {"prefill", "decode", "total"}
    assert only(path).question == "q"


def test_tokens_as_providers_tell_them(path: Path) -> None:
    usage: Any = {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    models = [
        GenericFakeChatModel(messages=iter([AIMessage("a", usage_metadata=usage)])) for _ in "ab"
    ]
    chain: Any = models[0] | StrOutputParser() | models[1]  # two calls add up
    chain.invoke("q", watched(SIFTRecorder(path)))
    assert reply(path).tokens == {"in": 14, "out": 4}


@pytest.mark.parametrize("how", HOW)
async def test_errors_are_raised_and_recorded(
    store: InMemoryVectorStore, path: Path, how: str
) -> None:
    error = ValueError("no")

    def bad(prompt: Any) -> str:
        raise error

    shown = store.as_retriever() | (lambda docs: "x")
    chain: Any = {"context": shown, "input": RunnablePassthrough()} | PROMPT | RunnableLambda(bad)
    recorder = SIFTRecorder(path)
    with pytest.raises(ValueError, match="no") as caught:
        await ask(chain, how, QUESTION, watched(recorder))
    assert caught.value is error
    assert (only(path).error, only(path).reply) == ("ValueError: no", None)
    assert only(path).question == QUESTION
    assert recorder._runs == {}


async def test_a_cancelled_task_and_a_stream_that_is_left(path: Path) -> None:
    async def wait(question: str) -> str:
        await asyncio.sleep(1e6)
        return question

    recorder = SIFTRecorder(path)
    chain = RunnableLambda(lambda x: x, afunc=wait)
    task = asyncio.create_task(chain.ainvoke("q", watched(recorder)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert only(path).error == "CancelledError: "
    stream: Any = FakeListChatModel(responses=["abc"]).astream("q", watched(recorder))
    assert (await anext(stream)).content == "a"
    await stream.aclose()
    assert recorder._runs == {}


def test_concurrent_threads(store: InMemoryVectorStore, path: Path) -> None:
    chain = lcel(store)
    recorder = SIFTRecorder(path)
    questions = [f"Who inspects pump {n}?" for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda q: chain.invoke(q, watched(recorder)), questions))
    rows = {row.question: row for row in read(path).rows["app"].values()}
    assert rows.keys() == set(questions)
    for question, answer in zip(questions, answers, strict=True):
        found = rows[question].reply
        assert found
        assert found.text == answer
        assert len(found.documents or ()) == 3
    assert (recorder.lost, recorder._runs) == (0, {})


async def test_concurrent_tasks(store: InMemoryVectorStore, path: Path) -> None:
    chain = lcel(store)
    recorder = SIFTRecorder(path)
    questions = [f"Who inspects pump {n}?" for n in range(50)]
    asked = [chain.ainvoke(q, watched(recorder)) for q in questions]
    answers = dict(zip(questions, await asyncio.gather(*asked), strict=True))
    rows = read(path).rows["app"].values()
    assert {row.question: row.reply and row.reply.text for row in rows} == answers


def test_a_thousand_runs_leave_nothing_behind(store: InMemoryVectorStore, path: Path) -> None:
    class Text(str):
        """One that can be looked for."""

    chain = lcel(store)
    recorder = SIFTRecorder(path, share=0.5)
    bad: Any = RunnableLambda(lambda x: 1 / 0)
    given: list[weakref.ref[Text]] = []
    for n in range(1000):
        question = Text(n)
        given.append(weakref.ref(question))
        if n % 10 == 0:
            with pytest.raises(ZeroDivisionError):
                bad.invoke(question, watched(recorder))
        elif n % 10 == 1:  # left early
            next(iter(chain.stream(question, watched(recorder))))
        else:
            chain.invoke(question, watched(recorder))
        del question
    gc.collect()
    assert recorder._runs == {}
    assert not [each for each in given if each() is not None]
    assert recorder.lost == 0
    assert 400 < len(read(path).cases) < 650


def test_runs_that_never_end_are_forgotten(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langchain_sift.recording._MANY", 10)
    recorder = SIFTRecorder(path)
    for _ in range(30):
        recorder.on_chain_start({}, "q", run_id=uuid4())
    assert len(recorder._runs) == 10
    recorder.on_chain_end("a", run_id=uuid4())  # of a run that it was not told of
    assert not path.exists()


def test_part_of_a_chain(store: InMemoryVectorStore, path: Path) -> None:
    """Given to one step, the recorder takes that step for the whole."""
    step = RunnableLambda(lambda x: x + "!").with_config(callbacks=[SIFTRecorder(path)])
    assert (RunnableLambda(lambda x: x + "?") | step | (lambda x: x + ".")).invoke("q") == "q?!."
    assert (only(path).question, reply(path).text) == ("q?", "q?!")


def test_the_name_of_a_request_is_its_runs(path: Path) -> None:
    name = uuid4()
    config: Any = watched(SIFTRecorder(path)) | {"run_id": name}
    RunnableLambda(lambda x: x).invoke("q", config)
    assert only(path).request == str(name)


def test_redaction_and_share(store: InMemoryVectorStore, path: Path) -> None:
    recorder = SIFTRecorder(path, redact=lambda text: text.replace("ump", "[thing]"))
    lcel(store).invoke(QUESTION, watched(recorder))
    assert b"ump" not in path.read_bytes()
    assert b"[thing]" in path.read_bytes()
    none = SIFTRecorder(path, "none", share=0.0)
    lcel(store).invoke(QUESTION, watched(none))
    assert read(path).ways == ("app",)
    assert none._runs == {}


def test_texts_that_are_no_text(path: Path) -> None:
    chain: Any = RunnableLambda(lambda x: {"context": [Document("a\ud800")], "answer": "\udfff"})
    recorder = SIFTRecorder(path)
    chain.invoke("q\ud800", watched(recorder))
    assert recorder.lost == 0
    assert (only(path).question, reply(path).text, passages(reply(path))) == ("q?", "?", ["a?"])


@pytest.mark.parametrize("how", HOW)
async def test_what_goes_wrong_does_not_reach_the_chain(
    store: InMemoryVectorStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    class Bad(SIFTRecorder):
        def question(self, inputs: Any) -> str | None:
            raise KeyError("bug")

    chain = lcel(store)
    wanted = await ask(chain, how, QUESTION)
    with pytest.warns(RuntimeWarning, match="KeyError"):
        assert await ask(chain, how, QUESTION, watched(Bad(tmp_path / "a"))) == wanted
    gone = SIFTRecorder(tmp_path / "no" / "b", shadow=chain, shadow_share=1.0)
    with pytest.warns(RuntimeWarning, match="No such file"):
        assert await ask(chain, how, QUESTION, watched(gone)) == wanted
    assert await asyncio.to_thread(gone.flush, WAIT)
    assert gone.lost == 2
    assert caplog.records == []


def made(path: Path, shadow: Any, **more: Any) -> SIFTRecorder:
    return SIFTRecorder(path, shadow=shadow, shadow_share=more.pop("shadow_share", 1.0), **more)


def both(path: Path) -> tuple[Recording, Recorded, Recorded]:
    found = read(path)
    [one], [two] = (found.rows[way].values() for way in ("app", "shadow"))
    assert one.request == two.request
    assert one.question == two.question
    return found, one, two


@pytest.mark.parametrize("how", HOW)
async def test_a_shadow_answers_the_same_input_beside_it(
    store: InMemoryVectorStore, tiny: Engine, path: Path, how: str
) -> None:
    chain = retrieval(store.as_retriever(search_kwargs={"k": 2}), stuffed(tiny))
    trained = create_ttt_documents_chain(tiny, ALONE)
    other = retrieval(SIFTRetriever(vectorstore=store, k=3), trained)
    wanted = await ask(chain, how, {"input": QUESTION})
    recorder = made(path, other)
    assert await ask(chain, how, {"input": QUESTION}, watched(recorder)) == wanted
    assert await asyncio.to_thread(recorder.flush, WAIT)
    _, one, two = both(path)
    assert one.reply
    assert two.reply
    assert one.reply.text == wanted["answer"]
    expected = other.invoke({"input": QUESTION})
    assert two.reply.text == expected["answer"]
    assert passages(two.reply) == [each.page_content for each in expected["context"]]
    assert two.reply.seconds.keys() == set(STAGES)
    assert two.reply.tokens["trained"] > 0
    assert recorder.lost == 0


@pytest.mark.parametrize("how", HOW)
async def test_the_first_answers_while_its_shadow_hangs(
    store: InMemoryVectorStore, path: Path, how: str
) -> None:
    answered = threading.Event()

    def slow(question: str) -> str:
        assert answered.wait(WAIT)
        return "late"

    chain, recorder = lcel(store), made(path, RunnableLambda(slow))
    wanted = await ask(chain, how, QUESTION)
    assert await ask(chain, how, QUESTION, watched(recorder)) == wanted
    assert not recorder.flush(0)
    answered.set()
    assert await asyncio.to_thread(recorder.flush, WAIT)
    _, one, two = both(path)
    assert one.reply
    assert two.reply
    assert (one.reply.text, two.reply.text) == (wanted, "late")


@pytest.mark.parametrize("how", HOW)
async def test_what_a_shadow_raises_is_a_row(
    store: InMemoryVectorStore, path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    def bad(question: str) -> str:
        raise SystemExit(question)

    chain, recorder = lcel(store), made(path, RunnableLambda(bad))
    wanted = await ask(chain, how, QUESTION)
    assert await ask(chain, how, QUESTION, watched(recorder)) == wanted
    assert await asyncio.to_thread(recorder.flush, WAIT)
    _, _, two = both(path)
    assert two.error == f"SystemExit: {QUESTION}"
    assert (recorder.lost, caplog.records) == (0, [])
    recorder.close(WAIT)
    assert await ask(chain, how, QUESTION, watched(recorder)) == wanted
    assert recorder.shadowing
    assert recorder.shadowing.dropped == 1


def test_a_shadow_hears_of_failures_too(path: Path) -> None:
    recorder = made(path, RunnableLambda(lambda x: x * 2))
    bad: Any = RunnableLambda(lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bad.invoke("q", watched(recorder))
    assert recorder.flush(WAIT)
    _, one, two = both(path)
    assert one.error == "ZeroDivisionError: division by zero"
    assert two.reply
    assert two.reply.text == "qq"


def test_a_shadow_gets_what_the_chain_got(path: Path) -> None:
    """Also where the chain changes its own input."""
    seen: list[Any] = []

    def change(inputs: Any) -> str:
        inputs["input"] = "changed"
        return "x"

    def see(inputs: Any) -> str:
        seen.append(dict(inputs))
        return "y"

    recorder = made(path, RunnableLambda(see))
    RunnableLambda(change).invoke({"input": "q", "k": 1}, watched(recorder))
    assert recorder.flush(WAIT)
    assert seen == [{"input": "q", "k": 1}]
    assert only(path).question == "q"


def test_a_shadow_is_no_part_of_the_first_ones_trace(path: Path) -> None:
    class Count(BaseCallbackHandler):
        runs = 0

        def on_chain_start(self, *_: Any, **kwargs: Any) -> None:
            self.runs += 1

    count, recorder = Count(), made(path, RunnableLambda(lambda x: x))
    chain = RunnableLambda(lambda x: x)
    chain.invoke("q", {"callbacks": [count, recorder]})
    assert recorder.flush(WAIT)
    assert count.runs == 1


def test_a_chain_that_is_its_own_shadow_does_not_run_away(path: Path) -> None:
    chain: Any = RunnableLambda(lambda x: x)
    recorder = made(path, chain)
    again = chain.with_config(callbacks=[recorder])
    outer = made(path, again, way="outer")
    again.invoke("q", watched(outer))
    assert outer.flush(WAIT)
    assert recorder.flush(WAIT)
    found = read(path)
    assert {way: len(rows) for way, rows in found.rows.items()} == {
        "app": 1,
        "outer": 1,
        "shadow": 1,
    }


def test_shares_of_shadows(path: Path) -> None:
    chain = RunnableLambda(lambda x: x)
    recorder = made(path, chain, shadow_share=0.2)
    chain.batch(["q"] * 300, watched(recorder))
    assert recorder.flush(WAIT)
    assert recorder.shadowing
    found = read(path)
    assert len(found.rows["app"]) == 300
    assert recorder.shadowing.dropped + len(found.rows["shadow"]) in range(25, 100)
    with pytest.raises(TypeError, match="must be a Runnable of LangChain, got function"):
        made(path, lambda x: x)
    with pytest.raises(ValueError, match="share is 7"):
        made(path, chain, shadow_share=7)
