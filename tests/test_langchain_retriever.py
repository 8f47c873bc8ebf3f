"""`SIFTRetriever` over real stores and over other retrievers."""

import asyncio
import functools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("langchain_core")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.tracers.base import BaseTracer
from langchain_core.vectorstores import InMemoryVectorStore, VectorStore
from langchain_sift import SIFTCallbackHandler, SIFTRetriever
from langchain_stores import LOSSY, STORES, HashEmbeddings, passages
from langchain_tests.integration_tests import RetrieversIntegrationTests

from sift_rag import nearest, sift, vectors
from sift_rag.events import Control, Event
from sift_rag.stopping import gain_share

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*langchain-community.* is being sunset:DeprecationWarning"),
]

QUESTION = "Which rivers feed the mills and towns?"
DOCUMENTS = passages(40)
TEXTS = [document.page_content for document in DOCUMENTS]
ADDED = {"sift_rank", "sift_gain", "sift_uncertainty", "sift_coverage"}


@pytest.fixture(autouse=True)
def nothing_was_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vectors, "_warned", set())


@pytest.fixture
def embeddings() -> HashEmbeddings:
    return HashEmbeddings()


@pytest.fixture
def store(embeddings: HashEmbeddings, tmp_path: Path) -> VectorStore:
    """FAISS, flat."""
    made = STORES["faiss-l2"](embeddings, DOCUMENTS, tmp_path)
    embeddings.reset()
    return made


def texts(documents: list[Document]) -> list[str]:
    return [document.page_content for document in documents]


def best(
    k: int, select: Callable[..., Any] = sift, among: list[str] = TEXTS, **settings: Any
) -> list[str]:
    """What the core selects, given the vectors."""
    embed = HashEmbeddings().vector
    picks = select(embed(QUESTION), np.array([embed(text) for text in among]), k, **settings)
    return [among[i] for i in picks.indices]


class _Suite(RetrieversIntegrationTests):
    name = ""

    @property
    def retriever_constructor(self) -> type[BaseRetriever]:
        return SIFTRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"vectorstore": STORES[self.name](HashEmbeddings(), DOCUMENTS, Path())}

    @property
    def retriever_query_example(self) -> str:
        return QUESTION


class TestStandardSuiteInMemory(_Suite):
    name = "memory"


class TestStandardSuiteOnFaiss(_Suite):
    name = "faiss-l2"


@pytest.mark.parametrize("name", STORES)
def test_the_picks_are_those_of_the_core_and_no_passage_is_embedded(
    name: str, tmp_path: Path
) -> None:
    embeddings = HashEmbeddings()
    store = STORES[name](embeddings, DOCUMENTS, tmp_path)
    embeddings.reset()
    found = SIFTRetriever(vectorstore=store, k=5).invoke(QUESTION)
    assert texts(found) == best(5)
    assert (embeddings.queries, embeddings.documents) == (1, 0)
    assert [document.metadata["sift_rank"] for document in found] == [1, 2, 3, 4, 5]
    assert all(type(document) is Document for document in found)
    by_text = {document.page_content: document for document in DOCUMENTS}
    for document in found:
        assert document.metadata.items() >= by_text[document.page_content].metadata.items()
        assert isinstance(document.metadata["sift_store_score"], float)
        json.dumps(document.metadata)


@pytest.mark.parametrize("name", STORES)
async def test_async_gives_the_same(name: str, tmp_path: Path) -> None:
    store = await asyncio.to_thread(STORES[name], HashEmbeddings(), DOCUMENTS, tmp_path)
    retriever = SIFTRetriever(vectorstore=store, k=3)
    wanted = await asyncio.to_thread(retriever.invoke, QUESTION)
    found = await retriever.ainvoke(QUESTION)
    assert texts(found) == texts(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.metadata.keys() == other.metadata.keys()
        for key in (*ADDED, "sift_store_score"):  # but for rounding: candidates may swap places
            assert one.metadata[key] == pytest.approx(other.metadata[key], rel=1e-5)


FILTERS: dict[str, Callable[[], Any]] = {
    "memory": lambda: lambda document: document.metadata["topic"] == "harbours",
    "faiss": lambda: {"topic": "harbours"},
    "chroma": lambda: {"topic": "harbours"},
    "qdrant": lambda: _qdrant_filter(),
    "lancedb": lambda: {"metadata.topic": "harbours"},
    "pgvector": lambda: {"topic": "harbours"},
}


def _qdrant_filter() -> Any:
    from qdrant_client import models

    match = models.MatchValue(value="harbours")
    return models.Filter(must=[models.FieldCondition(key="metadata.topic", match=match)])


@pytest.mark.parametrize("name", [name for name in STORES if name.split("-")[0] in FILTERS])
def test_a_filter_reaches_the_store_before_anything_is_cut_off(name: str, tmp_path: Path) -> None:
    store = STORES[name](HashEmbeddings(), DOCUMENTS, tmp_path)
    chosen = FILTERS[name.split("-")[0]]()
    wanted = best(4, among=[d.page_content for d in DOCUMENTS if d.metadata["topic"] == "harbours"])
    assert texts(SIFTRetriever(vectorstore=store).invoke(QUESTION, filter=chosen)) == wanted
    retriever = SIFTRetriever(vectorstore=store, search_kwargs={"filter": chosen})
    assert texts(retriever.invoke(QUESTION)) == wanted


def test_a_filter_of_the_call_goes_before_the_constructors(store: VectorStore) -> None:
    retriever = SIFTRetriever(vectorstore=store, search_kwargs={"filter": {"topic": "rivers"}})
    found = retriever.invoke(QUESTION, filter={"topic": "forests"})
    assert {document.metadata["topic"] for document in found} == {"forests"}


def test_the_stores_own_documents_are_not_touched(store: Any) -> None:
    before = {key: dict(d.metadata) for key, d in store.docstore._dict.items()}
    found = SIFTRetriever(vectorstore=store).invoke(QUESTION)
    found[0].metadata["topic"] = "seas"
    assert {key: d.metadata for key, d in store.docstore._dict.items()} == before


def test_gains_and_uncertainty_are_shares_that_add_up(store: VectorStore) -> None:
    found = [d.metadata for d in SIFTRetriever(vectorstore=store, k=6).invoke(QUESTION)]
    told = np.cumsum([each["sift_gain"] for each in found])
    np.testing.assert_allclose([each["sift_uncertainty"] for each in found], 1.0 - told)
    assert len({each["sift_coverage"] for each in found}) == 1


def test_k_and_fetch_k_of_a_call_and_of_the_constructor(store: VectorStore) -> None:
    retriever = SIFTRetriever(vectorstore=store, k=2, fetch_k=6)
    seen: list[Event] = []
    config: Any = {"callbacks": [_Watch(seen)]}
    assert len(retriever.invoke(QUESTION, config)) == 2
    assert len(retriever.invoke(QUESTION, config, k=3)) == 3
    assert len(retriever.invoke(QUESTION, config, fetch_k=9)) == 2
    assert len(retriever.invoke(QUESTION, config, k=8)) == 8  # fetches at least as many
    assert [each["candidates"] for each in seen] == [6, 6, 9, 8]
    assert len(SIFTRetriever(vectorstore=store, k=100).invoke(QUESTION)) == 40


class _Watch(SIFTCallbackHandler):
    """Keeps the selections."""

    def __init__(self, seen: list[Event], **settings: Any) -> None:
        super().__init__(**settings)
        self.seen = seen

    def on_selection(self, event: Event, control: Control) -> None:
        self.seen.append(event)


def test_what_is_announced(store: VectorStore) -> None:
    seen: list[Event] = []
    found = SIFTRetriever(vectorstore=store, k=2).invoke(QUESTION, {"callbacks": [_Watch(seen)]})
    (event,) = seen
    assert event["id"] == [document.id for document in found]
    for key in ("gain", "uncertainty"):
        assert event[key] == [document.metadata[f"sift_{key}"] for document in found]
    assert event["score"] == [document.metadata["sift_store_score"] for document in found]
    assert event["candidates"] == 40
    assert event["coverage"] == found[0].metadata["sift_coverage"]
    assert set(event["seconds"]) == {"search", "vectors", "select"}
    assert event["vectors"]["counts"] == {"object": 0, "store": 40, "cache": 0, "embedded": 0}
    assert set(event["vectors"]["seconds"]) == {"store", "embed"}
    assert not any(text in json.dumps(event) for text in TEXTS)


def test_batch_and_abatch_keep_the_order(store: VectorStore) -> None:
    retriever = SIFTRetriever(vectorstore=store, k=2)
    questions = [f"{word} {QUESTION}" for word in "harbours forests mountains roads".split()]
    wanted = [texts(retriever.invoke(question)) for question in questions]
    assert [texts(each) for each in retriever.batch(questions)] == wanted
    later = asyncio.run(retriever.abatch(questions))
    assert [texts(each) for each in later] == wanted


class _Gate:
    """Holds up whoever passes until the event loop gets round to letting it through."""

    def __init__(self) -> None:
        self.waiting: list[threading.Event] = []
        self.passed = 0

    def wait(self) -> None:
        event = threading.Event()
        self.waiting.append(event)
        assert event.wait(20), "the event loop was held up"
        self.passed += 1

    async def keep_open(self) -> None:
        while True:
            while self.waiting:
                self.waiting.pop().set()
            await asyncio.sleep(0.001)


class _Gated(HashEmbeddings, SIFTCallbackHandler):
    """Embeddings and a handler that take as long as the gate says."""

    def __init__(self, gate: _Gate) -> None:
        HashEmbeddings.__init__(self)
        SIFTCallbackHandler.__init__(self)
        self.gate = gate

    def embed_query(self, text: str) -> list[float]:
        self.gate.wait()
        return super().embed_query(text)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        self.gate.wait()
        return super().embed_documents(texts)

    def on_start(self, event: Event, control: Control) -> None:
        self.gate.wait()

    def on_selection(self, event: Event, control: Control) -> None:
        self.gate.wait()


@pytest.mark.parametrize(("policy", "waits"), [("auto", 3), ("embed", 4)])
async def test_many_at_once_do_not_hold_up_the_event_loop(
    policy: vectors.Policy, waits: int, tmp_path: Path
) -> None:
    store = STORES["faiss-l2"](HashEmbeddings(), DOCUMENTS, tmp_path)
    gate = _Gate()
    slow = _Gated(gate)
    retriever = SIFTRetriever(
        vectorstore=store, k=3, vectors=policy, embeddings=slow, callbacks=[slow]
    )
    opening = asyncio.create_task(gate.keep_open())
    await retriever.ainvoke(QUESTION)
    assert gate.passed == waits
    found = await asyncio.gather(*(retriever.ainvoke(QUESTION) for _ in range(8)))
    opening.cancel()
    assert all(texts(each) == best(3) for each in found)


def test_configurable_fields_keep_store_memory_and_handlers(tmp_path: Path) -> None:
    embeddings = HashEmbeddings()
    store = STORES["memory"](embeddings, DOCUMENTS, tmp_path)
    embeddings.reset()
    seen: list[Event] = []
    retriever = SIFTRetriever(vectorstore=store, vectors="embed", callbacks=[_Watch(seen)])
    chain = retriever.configurable_fields(
        k=ConfigurableField(id="k"),
        noise=ConfigurableField(id="noise"),
        vectors=ConfigurableField(id="vectors"),
    )
    assert len(chain.invoke(QUESTION)) == 4
    assert len(chain.invoke(QUESTION, {"configurable": {"k": 7}})) == 7
    assert len(chain.with_config(configurable={"k": 2}).invoke(QUESTION)) == 2
    assert texts(chain.invoke(QUESTION, {"configurable": {"noise": 50.0}})) == best(4, noise=50.0)
    assert embeddings.documents == 40  # one memory for all rebuilds
    chain.invoke(QUESTION, {"configurable": {"vectors": "store"}})
    assert [each["vectors"]["counts"]["store"] for each in seen] == [0, 0, 0, 0, 40]
    with pytest.raises(ValueError, match="k is 0; it must be at least 1"):
        chain.invoke(QUESTION, {"configurable": {"k": 0}})


def test_a_handler_of_the_call_configures_it_and_has_the_last_word(store: VectorStore) -> None:
    retriever = SIFTRetriever(vectorstore=store, k=2, callbacks=[SIFTCallbackHandler(k=3)])
    assert len(retriever.invoke(QUESTION)) == 3
    own = SIFTCallbackHandler(k=6, noise=50.0)
    found = retriever.invoke(QUESTION, {"callbacks": [own]}, k=5)
    assert texts(found) == best(6, noise=50.0)
    later = asyncio.run(retriever.ainvoke(QUESTION, {"callbacks": [own]}))
    assert texts(later) == texts(found)
    inner: Any = RunnableLambda(lambda question: retriever.invoke(question))  # no config handed on
    assert texts(inner.invoke(QUESTION, {"callbacks": [own]})) == texts(found)


class _Refuses(SIFTCallbackHandler):
    def on_selection(self, event: Event, control: Control) -> None:
        raise PermissionError("not these")


async def test_a_handler_that_raises_stops_the_call_with_its_error(store: VectorStore) -> None:
    retriever = SIFTRetriever(vectorstore=store)
    config: Any = {"callbacks": [_Refuses()]}
    with pytest.raises(PermissionError, match="not these"):
        await asyncio.to_thread(retriever.invoke, QUESTION, config)
    with pytest.raises(PermissionError, match="not these"):
        await retriever.ainvoke(QUESTION, config)


async def test_events_arrive_as_custom_events(store: VectorStore) -> None:
    retriever = SIFTRetriever(vectorstore=store, k=3)
    events: list[Any] = [event async for event in retriever.astream_events(QUESTION, version="v2")]
    names = [event.get("name") for event in events if event["event"] == "on_custom_event"]
    assert names == ["sift_start", "sift_selection"]
    selection = next(event for event in events if event["name"] == "sift_selection")
    assert len(selection["data"]["id"]) == 3
    assert selection["run_id"] == events[0]["run_id"]  # it belongs to the retriever's run
    assert selection["data"] == json.loads(json.dumps(selection["data"]))


class _Runs(BaseTracer):
    """Keeps the runs that LangSmith would get."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: list[Any] = []

    def _persist_run(self, run: Any) -> None:
        self.runs.append(run)


def test_tags_metadata_and_tracing_parameters(store: VectorStore) -> None:
    tracer = _Runs()
    retriever = SIFTRetriever(vectorstore=store, tags=["own"], metadata={"tenant": "a"})
    retriever.with_config(tags=["given"]).invoke(QUESTION, {"callbacks": [tracer]})
    (run,) = tracer.runs
    assert set(run.tags) == {"own", "given"}
    wanted = {
        "tenant": "a",
        "ls_retriever_name": "sift",
        "ls_vector_store_provider": "FAISS",
        "ls_embedding_provider": "HashEmbeddings",
    }
    assert run.extra["metadata"].items() >= wanted.items()


def test_policies_and_what_they_embed(store: VectorStore, embeddings: HashEmbeddings) -> None:
    wanted: dict[vectors.Policy, int] = {"auto": 0, "store": 0, "embed": 40}
    for policy, passages_embedded in wanted.items():
        embeddings.reset()
        retriever = SIFTRetriever(vectorstore=store, k=3, vectors=policy)
        for _ in range(2):
            assert texts(retriever.invoke(QUESTION)) == best(3)
        assert (embeddings.queries, embeddings.documents) == (2, passages_embedded)


def test_a_lossy_index_falls_back_to_embedding(tmp_path: Path) -> None:
    embeddings = HashEmbeddings()
    store = LOSSY["faiss-ivfpq"](embeddings, DOCUMENTS, tmp_path)
    store.index.nprobe = 4  # type: ignore[attr-defined]
    embeddings.reset()
    retriever = SIFTRetriever(vectorstore=store, k=5)
    with pytest.warns(UserWarning, match="FAISS gives no vectors: embedding 40 passages"):
        assert texts(retriever.invoke(QUESTION)) == best(5)
    assert texts(retriever.invoke(QUESTION)) == best(5)
    assert (embeddings.queries, embeddings.documents) == (2, 40)


def test_a_source_is_shared_by_giving_it(tmp_path: Path) -> None:
    embeddings = HashEmbeddings()
    store = STORES["memory"](embeddings, DOCUMENTS, tmp_path)
    first = SIFTRetriever(vectorstore=store, vectors="embed")
    first.invoke(QUESTION)
    embeddings.reset()
    SIFTRetriever(vectorstore=store, vectors="embed", source=first.source).invoke(QUESTION)
    assert embeddings.documents == 0


@pytest.mark.parametrize("name", ["memory", "faiss-l2", "chroma"])
def test_nearest_is_the_stores_own_order(name: str, tmp_path: Path) -> None:
    store = STORES[name](HashEmbeddings(), DOCUMENTS, tmp_path)
    found = SIFTRetriever(vectorstore=store, k=6, select=nearest).invoke(QUESTION)
    assert texts(found) == texts(store.similarity_search(QUESTION, k=6))


def test_a_selector_with_settings(store: VectorStore) -> None:
    linear = functools.partial(sift, kernel="linear", noise=0.01)
    found = SIFTRetriever(vectorstore=store, select=linear).invoke(QUESTION)
    assert texts(found) == best(4, linear)
    again = functools.partial(sift, kernel="linear", distinct=False)
    twice = SIFTRetriever(vectorstore=store, k=30, select=again, fetch_k=2).invoke(QUESTION)
    assert len(twice) == 30  # one passage more than once: each its own object
    twice[0].metadata["sift_rank"] = None
    assert [d.metadata["sift_rank"] for d in twice[1:]] == list(range(2, 31))


def test_a_stopping_rule_cuts(store: VectorStore) -> None:
    whole = SIFTRetriever(vectorstore=store, k=10).invoke(QUESTION)
    cut = SIFTRetriever(vectorstore=store, k=10, stop=gain_share(0.6)).invoke(QUESTION)
    assert 1 <= len(cut) < 10
    assert texts(cut) == texts(whole)[: len(cut)]


def test_a_budget_is_never_exceeded(store: VectorStore) -> None:
    found = SIFTRetriever(vectorstore=store, k=10, budget=50).invoke(QUESTION)
    assert 1 <= len(found) < 10
    assert sum(-(-len(text) // 4) for text in texts(found)) <= 50
    words = SIFTRetriever(
        vectorstore=store, k=10, budget=25, length_function=lambda text: len(text.split())
    ).invoke(QUESTION)
    assert sum(len(text.split()) for text in texts(words)) <= 25
    with pytest.warns(UserWarning, match="budget is 3 tokens and the shortest passage has 14"):
        assert SIFTRetriever(vectorstore=store, budget=3).invoke(QUESTION) == []


@pytest.mark.parametrize("name", ["memory", "faiss-l2", "chroma", "lancedb"])
def test_documents_without_ids_and_equal_ones(name: str, tmp_path: Path) -> None:
    documents = [*passages(6, ids=False), *passages(6, ids=False), Document("")]
    store = STORES[name](HashEmbeddings(), documents, tmp_path)
    found = SIFTRetriever(vectorstore=store, k=8).invoke(QUESTION)
    assert len(found) == 8
    assert len(set(texts(found)[:5])) == 5  # what repeats another comes last


class _Base(BaseRetriever):
    """Yields what it was made with."""

    documents: list[Document]

    def _get_relevant_documents(
        self, query: str, *, run_manager: Any, top: int | None = None
    ) -> list[Document]:
        return self.documents[:top]


def test_duplicate_ids_no_id_and_empty_text(embeddings: HashEmbeddings) -> None:
    documents = [Document("rivers", id="a"), Document("towns", id="a"), Document(""), Document("x")]
    base = _Base(documents=documents)
    retriever = SIFTRetriever.from_retriever(base, embeddings=embeddings, k=3)
    found = retriever.invoke("rivers and towns")
    assert sorted(texts(found)) == ["rivers", "towns", "x"]  # the empty one is left out
    assert [document.id for document in found if document.page_content != "x"] == ["a", "a"]
    assert "sift_store_score" not in found[0].metadata


def test_where_no_document_has_a_vector_the_first_are_given(embeddings: HashEmbeddings) -> None:
    base = _Base(documents=[Document("", id=str(i)) for i in range(5)])
    retriever = SIFTRetriever.from_retriever(base, embeddings=embeddings, k=3)
    found = retriever.invoke(QUESTION)
    assert [document.id for document in found] == ["0", "1", "2"]
    assert [document.metadata["sift_gain"] for document in found] == [0.0] * 3
    bounded = SIFTRetriever.from_retriever(base, embeddings=embeddings, k=3, budget=2)
    assert [document.id for document in bounded.invoke(QUESTION)] == ["0", "1"]


@pytest.mark.parametrize("name", ["memory", "chroma", "lancedb"])
async def test_no_documents_and_one(name: str, tmp_path: Path) -> None:
    empty = SIFTRetriever(vectorstore=STORES["memory"](HashEmbeddings(), [], tmp_path))
    seen: list[Event] = []
    assert empty.invoke(QUESTION, {"callbacks": [_Watch(seen)]}) == []
    assert await empty.ainvoke(QUESTION) == []
    assert (seen[0]["id"], seen[0]["candidates"], seen[0]["coverage"]) == ([], 0, 0.0)
    one = await asyncio.to_thread(STORES[name], HashEmbeddings(), DOCUMENTS[:1], tmp_path)
    assert texts(await SIFTRetriever(vectorstore=one).ainvoke(QUESTION)) == TEXTS[:1]


def test_a_stores_retriever_keeps_its_filter_and_yields_fetch_k(
    store: VectorStore, embeddings: HashEmbeddings
) -> None:
    base = store.as_retriever(search_kwargs={"k": 2, "filter": {"topic": "rivers"}, "fetch_k": 40})
    wanted = best(4, among=[d.page_content for d in DOCUMENTS if d.metadata["topic"] == "rivers"])
    for wrapped in (base, base.with_config(tags=["x"]), base.bind(k=1)):
        assert texts(SIFTRetriever.from_retriever(wrapped).invoke(QUESTION)) == wanted
    assert embeddings.documents == 0
    assert asyncio.run(SIFTRetriever.from_retriever(base).ainvoke(QUESTION))[0].metadata[
        "sift_rank"
    ] == 1  # fmt: skip


def test_a_faiss_retriever_with_a_filter_looks_far_enough(tmp_path: Path) -> None:
    store = STORES["faiss-l2"](HashEmbeddings(), passages(120), tmp_path)
    base = store.as_retriever(search_kwargs={"filter": {"topic": "forests"}})
    seen: list[Event] = []
    SIFTRetriever.from_retriever(base).invoke(QUESTION, {"callbacks": [_Watch(seen)]})
    assert seen[0]["candidates"] == 30  # all of that topic; of the nearest 20 fewer are


def test_an_mmr_retriever_is_asked_for_fetch_k(store: VectorStore) -> None:
    seen: list[Event] = []
    retriever = SIFTRetriever.from_retriever(store.as_retriever(search_type="mmr"), fetch_k=30)
    retriever.invoke(QUESTION, {"callbacks": [_Watch(seen)]})
    assert seen[0]["candidates"] == 30


def test_what_is_configurable_in_the_base_still_is(store: VectorStore) -> None:
    base = store.as_retriever().configurable_fields(search_kwargs=ConfigurableField(id="search"))
    retriever = SIFTRetriever.from_retriever(base)
    search = {"filter": {"topic": "forests"}, "fetch_k": 40}
    config: Any = {"configurable": {"search": search}}
    for found in (
        retriever.invoke(QUESTION, config),
        asyncio.run(retriever.ainvoke(QUESTION, config)),
    ):
        assert {document.metadata["topic"] for document in found} == {"forests"}


def test_any_runnable_is_a_base_and_gets_the_calls_arguments(embeddings: HashEmbeddings) -> None:
    base = _Base(documents=DOCUMENTS)
    retriever = SIFTRetriever.from_retriever(base, embeddings=embeddings, k=2)
    assert texts(retriever.invoke(QUESTION)) == best(2)
    assert texts(retriever.invoke(QUESTION, top=10)) == best(2, among=TEXTS[:10])
    plain: Any = RunnableLambda(lambda question: DOCUMENTS)
    retriever = SIFTRetriever.from_retriever(plain, embeddings=embeddings, k=2)
    assert texts(retriever.invoke(QUESTION)) == best(2)


def test_the_base_runs_below_the_retriever(embeddings: HashEmbeddings) -> None:
    tracer = _Runs()
    base = _Base(documents=DOCUMENTS)
    retriever = SIFTRetriever.from_retriever(base, embeddings=embeddings)
    retriever.invoke(QUESTION, {"callbacks": [tracer]})
    (run,) = tracer.runs
    assert (run.name, [child.name for child in run.child_runs]) == ("SIFTRetriever", ["_Base"])


def test_a_base_with_nothing_to_choose_from_is_told_of_once(embeddings: HashEmbeddings) -> None:
    base = _Base(documents=DOCUMENTS[:4])
    retriever = SIFTRetriever.from_retriever(base, embeddings=embeddings)
    with pytest.warns(UserWarning, match="_Base yields 4 documents and k is 4: there is nothing"):
        assert len(retriever.invoke(QUESTION)) == 4
    assert len(retriever.invoke(QUESTION)) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k is 0; it must be at least 1"),
        ({"fetch_k": -1}, "fetch_k is -1; it must be at least 1"),
        ({"budget": 0}, "budget is 0; it must be at least 1"),
        ({"noise": 0.0}, "noise is 0.0; it must be a finite number above 0"),
        ({"vectors": "never"}, "'auto', 'store' or 'embed'"),
        ({"vectorstore": None}, "Give vectorstore or retriever, one of them; got neither"),
    ],
)
def test_settings_are_checked(store: VectorStore, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SIFTRetriever(**{"vectorstore": store, **settings})


def test_bases_are_checked(store: VectorStore) -> None:
    base = store.as_retriever()
    with pytest.raises(ValueError, match="one of them; got both"):
        SIFTRetriever(vectorstore=store, retriever=base)
    with pytest.raises(ValueError, match="search_kwargs go to the search of vectorstore"):
        SIFTRetriever.from_retriever(base, search_kwargs={"filter": {}})
    with pytest.raises(ValueError, match=r"no embeddings for the question.*embeddings="):
        SIFTRetriever.from_retriever(_Base(documents=[]))
    with pytest.raises(ValueError, match="k is 0; it must be at least 1"):
        SIFTRetriever(vectorstore=store).invoke(QUESTION, k=0)


def test_embeddings_of_another_size_are_a_clear_error() -> None:
    documents = [Document("a", metadata={"v": [1.0, 2.0]})]
    base = _Base(documents=documents * 5)
    small = HashEmbeddings(dimensions=8)
    retriever = SIFTRetriever.from_retriever(base, embeddings=small, vector_key="v")
    with pytest.raises(ValueError, match="has 2 dimensions, wanted 8 as the question's"):
        retriever.invoke(QUESTION)


def test_inside_a_retrieval_chain(store: VectorStore) -> None:
    from langchain_classic.chains import create_retrieval_chain
    from langchain_classic.chains.combine_documents import create_stuff_documents_chain

    prompt = ChatPromptTemplate.from_template("{context}\n\n{input}")
    answer = create_stuff_documents_chain(FakeListChatModel(responses=["the Elbe"]), prompt)
    retriever = SIFTRetriever(vectorstore=store, k=3)
    chain = create_retrieval_chain(retriever, answer)
    for found in (
        chain.invoke({"input": QUESTION}),
        asyncio.run(chain.ainvoke({"input": QUESTION})),
    ):
        assert found["answer"] == "the Elbe"
        assert texts(found["context"]) == best(3)
    chosen = retriever.configurable_fields(k=ConfigurableField(id="k"))
    chain = create_retrieval_chain((lambda x: x["input"]) | chosen, answer)
    found = chain.invoke({"input": QUESTION}, {"configurable": {"k": 5}})
    assert texts(found["context"]) == best(5)
    handler = SIFTCallbackHandler(k=1)
    assert len(chain.invoke({"input": QUESTION}, {"callbacks": [handler]})["context"]) == 1


def test_it_is_no_serializable_and_shows_itself(store: VectorStore) -> None:
    retriever = SIFTRetriever(vectorstore=store, k=5)
    assert not retriever.is_lc_serializable()
    assert "k=5" in repr(retriever)
    assert isinstance(retriever.model_dump()["fetch_k"], int)


def test_a_store_without_embeddings_needs_them(embeddings: HashEmbeddings) -> None:
    class Bare(InMemoryVectorStore):
        @property
        def embeddings(self) -> Any:
            return None

        embedding: Any = property(lambda self: None, lambda self, value: None)

    with pytest.raises(ValueError, match="SIFTRetriever has no embeddings for the question"):
        SIFTRetriever(vectorstore=Bare(embeddings))
    bare = Bare(embeddings)
    bare.store = STORES["memory"](embeddings, DOCUMENTS, Path()).store  # type: ignore[attr-defined]
    assert texts(SIFTRetriever(vectorstore=bare, embeddings=embeddings).invoke(QUESTION)) == best(4)


class _Sees(BaseCallbackHandler):
    """An ordinary handler of LangChain."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_retriever_start(self, serialized: Any, query: str, **kwargs: Any) -> None:
        self.names.append("retriever")

    def on_custom_event(self, name: str, data: Any, **kwargs: Any) -> None:
        self.names.append(name)


async def test_constructor_handlers_join_those_of_the_config(store: VectorStore) -> None:
    own, given = _Sees(), _Sees()
    retriever = SIFTRetriever(vectorstore=store, callbacks=[own])
    await retriever.ainvoke(QUESTION)
    await retriever.ainvoke(QUESTION, {"callbacks": [given, own]})  # in both: told once
    assert own.names == ["retriever", "sift_start", "sift_selection"] * 2
    assert given.names == ["retriever", "sift_start", "sift_selection"]


async def test_a_call_may_set_what_the_constructor_sets(store: VectorStore) -> None:
    retriever = SIFTRetriever(vectorstore=store, k=6)
    calls: list[dict[str, Any]] = [
        {"noise": 5.0},
        {"select": nearest},
        {"stop": gain_share(0.5)},
        {"budget": 40},
        {"vectors": "embed"},
        {"noise": 5.0, "k": 2, "fetch_k": 10},
    ]
    for settings in calls:
        wanted = SIFTRetriever(vectorstore=store, **{"k": 6, **settings}).invoke(QUESTION)
        assert retriever.invoke(QUESTION, **settings) == wanted
        assert await retriever.ainvoke(QUESTION, **settings) == wanted
    with pytest.raises(ValueError, match="noise is -1"):
        retriever.invoke(QUESTION, noise=-1.0)
