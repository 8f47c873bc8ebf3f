"""`SIFTRetriever` over real indexes and over other retrievers of LlamaIndex."""

import asyncio
import copy
import json
import threading
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import (
    QueryBundle,
    StorageContext,
    SummaryIndex,
    VectorStoreIndex,
    get_response_synthesizer,
)
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.base_selector import BaseSelector, MultiSelection, SingleSelection
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.indices.query.query_transform.base import HyDEQueryTransform
from llama_index.core.instrumentation.events.retrieval import (
    RetrievalEndEvent,
    RetrievalStartEvent,
)
from llama_index.core.llms import CompletionResponse, CustomLLM, LLMMetadata, MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import (
    RetrieverQueryEngine,
    RouterQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.retrievers import (
    QueryFusionRetriever,
    RouterRetriever,
    TransformRetriever,
    VectorIndexRetriever,
)
from llama_index.core.retrievers.fusion_retriever import FUSION_MODES
from llama_index.core.schema import IndexNode, MetadataMode, NodeWithScore, TextNode
from llama_index.core.tools import QueryEngineTool, RetrieverTool
from llama_index.core.vector_stores import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    SimpleVectorStore,
)
from llama_index.core.vector_stores.types import VectorStoreQueryMode
from llama_index_sift import (
    SIFTCallbackHandler,
    SIFTPostprocessor,
    SIFTRetriever,
    SIFTSelectionEvent,
)
from llama_index_stores import STORES, HashEmbedding, embedded_text
from llama_index_stores import nodes as passages

from sift_rag import mmr, nearest, sift, vectors
from sift_rag.events import Control, Event
from sift_rag.stopping import gain_share

if TYPE_CHECKING:
    from llama_index_watching import Seen

pytest_plugins = ["llama_index_watching"]
pytestmark = pytest.mark.usefixtures("no_defaults")
QUESTION = "Which rivers feed the mills and towns?"
OTHER = "What do the forests border?"
NODES = passages(40)
TOLD = {"sift_rank", "sift_gain", "sift_uncertainty", "sift_coverage", "sift_store_score"}


@pytest.fixture
def model() -> HashEmbedding:
    return HashEmbedding()


@pytest.fixture
def index(model: HashEmbedding, tmp_path: Path) -> VectorStoreIndex:
    made = STORES["simple"](model, NODES, tmp_path)
    model.reset()
    return made


class _Watch(SIFTCallbackHandler):
    """Keeps the selections."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen: list[Event] = []

    def on_selection(self, event: Event, control: Control) -> None:
        self.seen.append(event)


class _Fixed(BaseRetriever):
    """Yields what it was made with, and keeps the bundles that it got."""

    def __init__(self, nodes: Any) -> None:
        self.nodes = [NodeWithScore(node=node, score=0.5) for node in nodes]
        self.bundles: list[QueryBundle] = []
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        self.bundles.append(query_bundle)
        return list(self.nodes)


class _Says(CustomLLM):
    """Answers each prompt with the same text."""

    text: str

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata()

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return CompletionResponse(text=self.text)

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        raise NotImplementedError


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [each.node.node_id for each in nodes]


def best(
    k: int, *questions: str, select: Any = sift, among: Any = NODES, **settings: Any
) -> list[str]:
    """What the core selects, given the vectors."""
    embed = HashEmbedding().vector
    rows = np.array([embed(embedded_text(node)) for node in among])
    query = np.array([embed(question) for question in questions or (QUESTION,)])
    return [among[i].node_id for i in select(query, rows, k, **settings).indices]


def engine_of(retriever: BaseRetriever, **settings: Any) -> RetrieverQueryEngine:
    """An engine whose response is the prompt that the model got."""
    synthesizer = get_response_synthesizer(llm=MockLLM())
    return RetrieverQueryEngine(retriever, response_synthesizer=synthesizer, **settings)


def topic(name: str) -> MetadataFilters:
    return MetadataFilters(
        filters=[MetadataFilter(key="topic", value=name, operator=FilterOperator.EQ)]
    )


@pytest.mark.parametrize("name", STORES)
def test_the_picks_are_those_of_the_core_and_no_node_is_embedded(name: str, tmp_path: Path) -> None:
    model = HashEmbedding()
    index = STORES[name](model, NODES, tmp_path)
    model.reset()
    retriever = SIFTRetriever(index, k=5)
    found = retriever.retrieve(QUESTION)
    assert ids(found) == best(5)
    assert (model.queries, model.texts) == (1, 0)
    by_id = {node.node_id: node for node in NODES}
    for rank, each in enumerate(found, 1):
        own = by_id[each.node_id]
        assert each.metadata.keys() - own.metadata.keys() == TOLD
        assert each.metadata.items() >= own.metadata.items()
        assert each.metadata["sift_rank"] == rank
        assert isinstance(each.metadata["sift_store_score"], float)
        json.dumps(each.metadata)
        assert each.node.relationships.keys() == own.relationships.keys()
        assert each.node.get_content(MetadataMode.LLM) == own.get_content(MetadataMode.LLM)
    scores = [each.score or 0.0 for each in found]
    assert scores[0] == 1.0
    assert all(one > other > 0 for one, other in pairwise(scores))


@pytest.mark.parametrize("name", STORES)
async def test_async_gives_the_same(name: str, tmp_path: Path) -> None:
    model = HashEmbedding()
    index = await asyncio.to_thread(STORES[name], model, NODES, tmp_path)
    model.reset()
    retriever = SIFTRetriever(index, k=3)
    wanted = await asyncio.to_thread(retriever.retrieve, QUESTION)
    found = await retriever.aretrieve(QUESTION)
    assert ids(found) == ids(wanted) == best(3)
    for one, other in zip(found, wanted, strict=True):
        assert one.metadata.keys() == other.metadata.keys()
        for key in TOLD:  # but for rounding: candidates may swap places
            assert one.metadata[key] == pytest.approx(other.metadata[key], rel=1e-5)
    assert (model.queries, model.texts) == (2, 0)


# FAISS of LlamaIndex has no filters.
@pytest.mark.parametrize("name", [name for name in STORES if name != "faiss"])
def test_filters_reach_the_store_before_anything_is_cut_off(name: str, tmp_path: Path) -> None:
    index = STORES[name](HashEmbedding(), NODES, tmp_path)
    wanted = best(4, among=[node for node in NODES if node.metadata["topic"] == "harbours"])
    found = SIFTRetriever(index, k=4, fetch_k=10, filters=topic("harbours"))
    assert ids(found.retrieve(QUESTION)) == wanted
    base = index.as_retriever(similarity_top_k=2, filters=topic("harbours"))
    assert ids(SIFTRetriever(base, k=4, fetch_k=10).retrieve(QUESTION)) == wanted


def test_other_arguments_of_as_retriever_pass_through(index: VectorStoreIndex) -> None:
    few = [node.node_id for node in NODES[:12]]
    simple: Any = index.vector_store
    asked: list[Any] = []

    class Keeps(SimpleVectorStore):
        def query(self, query: Any, **kwargs: Any) -> Any:
            asked.append((query, kwargs))
            return simple.query(query, **kwargs)

    index._vector_store = Keeps(data=simple.data)
    retriever = SIFTRetriever(
        index,
        vector_store_query_mode=VectorStoreQueryMode.MMR,
        doc_ids=["notes-0", "notes-1"],
        vector_store_kwargs={"mmr_threshold": 0.9},
    )
    retriever.retrieve(QUESTION)
    query, kwargs = asked[0]
    assert (query.mode, query.similarity_top_k) == (VectorStoreQueryMode.MMR, 50)
    assert (query.doc_ids, kwargs) == (["notes-0", "notes-1"], {"mmr_threshold": 0.9})
    base: Any = index.as_retriever(sparse_top_k=2, hybrid_top_k=80, doc_ids=few)
    SIFTRetriever(base).retrieve(QUESTION)
    query, _ = asked[1]
    assert (query.similarity_top_k, query.sparse_top_k, query.hybrid_top_k) == (50, 50, 80)
    assert (base.similarity_top_k, base._sparse_top_k, base._hybrid_top_k) == (2, 2, 80)


def test_a_retriever_of_the_caller_is_not_changed(
    index: VectorStoreIndex, model: HashEmbedding
) -> None:
    base = index.as_retriever(similarity_top_k=3)
    before = dict(vars(base))
    assert ids(SIFTRetriever(base).retrieve(QUESTION)) == best(5)
    assert vars(base) == before
    assert len(base.retrieve(QUESTION)) == 3
    assert model.texts == 0


def test_the_callers_bundle_is_not_written_into(index: VectorStoreIndex) -> None:
    for base in (index, index.as_retriever(), _Fixed(NODES)):
        retriever = SIFTRetriever(base, embed_model=HashEmbedding())
        bundle = QueryBundle(QUESTION, custom_embedding_strs=[QUESTION, OTHER])
        before = copy.deepcopy(bundle)
        retriever.retrieve(bundle)
        asyncio.run(retriever.aretrieve(bundle))
        assert bundle == before


def test_k_and_fetch_k(index: VectorStoreIndex) -> None:
    watch = _Watch()
    retriever = SIFTRetriever(index, 2, 6, callback_manager=CallbackManager([watch]))
    assert len(retriever.retrieve(QUESTION)) == 2
    retriever.k = 8
    assert len(retriever.retrieve(QUESTION)) == 8  # fetches at least as many
    retriever.k, retriever.fetch_k = 3, 9
    assert len(retriever.retrieve(QUESTION)) == 3
    assert [event["candidates"] for event in watch.seen] == [6, 8, 9]
    assert len(SIFTRetriever(index, k=100).retrieve(QUESTION)) == 40
    retriever.k = 0
    with pytest.raises(ValueError, match="k is 0; it must be at least 1"):
        retriever.retrieve(QUESTION)


def test_settings_of_the_selection(index: VectorStoreIndex) -> None:
    calls: list[dict[str, Any]] = [{"noise": 5.0}, {"select": nearest}, {"select": mmr}]
    for settings in calls:
        found = SIFTRetriever(index, k=6, **settings).retrieve(QUESTION)
        assert ids(found) == best(6, **settings)
    whole = ids(SIFTRetriever(index, k=10).retrieve(QUESTION))
    cut = ids(SIFTRetriever(index, k=10, stop=gain_share(0.6)).retrieve(QUESTION))
    assert 1 <= len(cut) < 10
    assert cut == whole[: len(cut)]
    found = SIFTRetriever(index, k=10, budget=70).retrieve(QUESTION)
    shown = [each.node.get_content(MetadataMode.LLM) for each in found]
    assert 1 <= sum(-(-len(text) // 4) for text in shown) <= 70
    unmarked = SIFTRetriever(index, mark=False).retrieve(QUESTION)
    assert ids(unmarked) == best(5)
    assert not any(TOLD & each.metadata.keys() for each in unmarked)


def test_nearest_is_the_stores_own_order(index: VectorStoreIndex) -> None:
    found = SIFTRetriever(index, k=6, select=nearest).retrieve(QUESTION)
    plain = index.as_retriever(similarity_top_k=6).retrieve(QUESTION)
    assert ids(found) == ids(plain)
    stores = [each.metadata["sift_store_score"] for each in found]
    np.testing.assert_allclose(stores, [each.score or 0.0 for each in plain])


def test_policies_and_what_they_embed(index: VectorStoreIndex, model: HashEmbedding) -> None:
    wanted: dict[vectors.Policy, int] = {"auto": 0, "store": 0, "embed": 40}
    for policy, embedded in wanted.items():
        model.reset()
        retriever = SIFTRetriever(index, vectors=policy)
        for _ in range(2):
            assert ids(retriever.retrieve(QUESTION)) == best(5)
        assert (model.queries, model.texts) == (2, embedded)
    again = SIFTRetriever(index, vectors="embed", source=retriever.source)
    model.reset()
    again.retrieve(QUESTION)
    assert model.texts == 0


# The question


def test_a_vector_of_the_caller_is_used(index: VectorStoreIndex, model: HashEmbedding) -> None:
    bundle = QueryBundle(QUESTION, embedding=model.vector(OTHER).tolist())
    assert ids(SIFTRetriever(index).retrieve(bundle)) == best(5, OTHER)
    assert ids(asyncio.run(SIFTRetriever(index).aretrieve(bundle))) == best(5, OTHER)
    assert model.queries == 0


def test_several_texts_are_several_queries(index: VectorStoreIndex, model: HashEmbedding) -> None:
    bundle = QueryBundle(QUESTION, custom_embedding_strs=[QUESTION, OTHER])
    retriever = SIFTRetriever(index)
    assert ids(retriever.retrieve(bundle)) == best(5, QUESTION, OTHER) != best(5)
    assert ids(asyncio.run(retriever.aretrieve(bundle))) == best(5, QUESTION, OTHER)
    assert model.queries == 4  # the store is searched by their mean, not embedded again
    near = SIFTRetriever(index, k=40, fetch_k=5).retrieve(bundle)
    assert len(near) == 40
    plain = index.as_retriever(similarity_top_k=5).retrieve(
        QueryBundle(QUESTION, custom_embedding_strs=[QUESTION, OTHER])
    )
    few = SIFTRetriever(index, k=5, fetch_k=5).retrieve(bundle)
    assert set(ids(few)) == set(ids(plain))


def test_hyde_gives_its_documents_as_queries(index: VectorStoreIndex) -> None:
    hyde = HyDEQueryTransform(llm=_Says(text=OTHER), include_original=True)
    found = TransformRetriever(SIFTRetriever(index), hyde).retrieve(QUESTION)
    assert ids(found) == best(5, OTHER, QUESTION)
    engine = TransformQueryEngine(engine_of(SIFTRetriever(index)), hyde)
    assert ids(engine.query(QUESTION).source_nodes) == best(5, OTHER, QUESTION)


# Over other retrievers


def test_any_retriever_is_a_base(model: HashEmbedding, index: VectorStoreIndex) -> None:
    base = _Fixed(NODES)
    retriever = SIFTRetriever(base, embed_model=model)
    assert ids(retriever.retrieve(QUESTION)) == best(5)
    assert ids(asyncio.run(retriever.aretrieve(QUESTION))) == best(5)
    assert (model.texts, model.queries) == (40, 2)
    assert [bundle.embedding for bundle in base.bundles] == [None, None]  # its model may be another
    stored = SIFTRetriever(base, embed_model=model, vector_store=index, vectors="store")
    assert ids(stored.retrieve(QUESTION)) == best(5)
    assert model.texts == 40


def test_an_index_that_is_no_vector_index(model: HashEmbedding) -> None:
    whole = SummaryIndex(NODES)
    assert ids(SIFTRetriever(whole, embed_model=model).retrieve(QUESTION)) == best(5)
    with pytest.raises(ValueError, match="SIFTRetriever has no embed_model for the question"):
        SIFTRetriever(whole)


def test_a_base_with_nothing_to_choose_from_is_told_of_once(model: HashEmbedding) -> None:
    retriever = SIFTRetriever(_Fixed(NODES[:4]), k=4, embed_model=model)
    with pytest.warns(UserWarning, match="_Fixed yields 4 nodes and k is 4: there is nothing"):
        assert len(retriever.retrieve(QUESTION)) == 4
    assert len(retriever.retrieve(QUESTION)) == 4  # a second warning would be an error
    assert SIFTRetriever(_Fixed([]), embed_model=model).retrieve(QUESTION) == []


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("mode", FUSION_MODES)
def test_a_fusion_retrievers_questions_are_several_queries(
    mode: FUSION_MODES, asynchronous: bool, index: VectorStoreIndex, model: HashEmbedding
) -> None:
    fusion = QueryFusionRetriever(
        [index.as_retriever(similarity_top_k=40)],
        llm=_Says(text=f"{OTHER}\n\nWhat is in note 7?"),
        num_queries=2,
        similarity_top_k=40,
        mode=mode,
        use_async=False,
    )
    before = dict(vars(fusion))
    retriever = SIFTRetriever(fusion, embed_model=model, vector_store=index)
    if asynchronous:
        found = asyncio.run(retriever.aretrieve(QUESTION))
    else:
        found = retriever.retrieve(QUESTION)
    assert ids(found) == best(5, QUESTION, OTHER)
    assert vars(fusion) == before
    assert model.texts == 0


def test_inside_a_fusion_retriever_unmarked_nodes_are_recognised(index: VectorStoreIndex) -> None:
    """It knows a node that was found twice by the hash of text and metadata."""
    plain = index.as_retriever(similarity_top_k=40)
    fusion = QueryFusionRetriever(
        [SIFTRetriever(index, mark=False), plain],
        llm=MockLLM(),
        num_queries=1,
        similarity_top_k=40,
        mode=FUSION_MODES.RECIPROCAL_RANK,
        use_async=False,
    )
    found = {each.node_id: each.score for each in fusion.retrieve(QUESTION)}
    assert len(found) == 40
    second = ids(plain.retrieve(QUESTION))
    for rank, name in enumerate(best(5)):
        assert found[name] == pytest.approx(1 / (60 + rank) + 1 / (60 + second.index(name)))


class _Chooses(BaseSelector):
    """Takes all choices, or the first."""

    def __init__(self, *picks: int) -> None:
        self.picks = picks

    def _select(self, choices: Any, query: QueryBundle) -> MultiSelection:
        return MultiSelection(selections=[SingleSelection(index=i, reason="") for i in self.picks])

    async def _aselect(self, choices: Any, query: QueryBundle) -> MultiSelection:
        return self._select(choices, query)

    def _get_prompts(self) -> Any:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass


def test_routers(index: VectorStoreIndex) -> None:
    first = SIFTRetriever(index, k=5)
    second = SIFTRetriever(index, k=3, filters=topic("forests"))
    tools = [RetrieverTool.from_defaults(each, description="notes") for each in (first, second)]
    router = RouterRetriever(_Chooses(0), tools, llm=MockLLM())
    assert ids(router.retrieve(QUESTION)) == best(5)
    both = RouterRetriever(_Chooses(0, 1), tools, llm=MockLLM())
    forests = [node for node in NODES if node.metadata["topic"] == "forests"]
    assert set(ids(both.retrieve(QUESTION))) == {*best(5), *best(3, among=forests)}
    over = SIFTRetriever(both, k=2, embed_model=HashEmbedding())
    assert len(over.retrieve(QUESTION)) == 2
    engines = [
        QueryEngineTool.from_defaults(engine_of(each), description="notes")
        for each in (first, second)
    ]
    engine = RouterQueryEngine(_Chooses(1), engines, llm=MockLLM())
    assert ids(engine.query(QUESTION).source_nodes) == best(3, among=forests)


# IndexNodes


def _entries(targets: list[Any]) -> list[IndexNode]:
    return [
        IndexNode(text=node.text, id_=node.node_id, index_id=f"entry-{i}", obj=target)
        for i, (node, target) in enumerate(zip(NODES, targets, strict=False))
    ]


class _Counts(_Fixed):
    """Counts how often it is asked."""


def test_only_picks_are_followed_to_what_they_stand_for(model: HashEmbedding) -> None:
    inner = [_Counts([TextNode(text=f"inside {i}", id_=f"inside-{i}")]) for i in range(20)]
    entries = _entries(inner)
    index = VectorStoreIndex(objects=entries, embed_model=model)
    wanted = best(3, among=entries)
    numbers = [next(i for i, e in enumerate(entries) if e.node_id == name) for name in wanted]
    retriever = SIFTRetriever(index, k=3)
    assert ids(retriever.retrieve(QUESTION)) == [f"inside-{i}" for i in numbers]
    assert ids(asyncio.run(retriever.aretrieve(QUESTION))) == [f"inside-{i}" for i in numbers]
    assert [len(each.bundles) for each in inner] == [2 if i in numbers else 0 for i in range(20)]
    over = SIFTRetriever(index.as_retriever(similarity_top_k=2), k=3)
    assert ids(over.retrieve(QUESTION)) == [f"inside-{i}" for i in numbers]


def test_an_object_map_of_the_caller_joins_the_indexes(model: HashEmbedding) -> None:
    entries = _entries([None] * 6)
    index = VectorStoreIndex(entries, embed_model=model)
    target = TextNode(text="far away", id_="far")
    found = SIFTRetriever(index, k=6).retrieve(QUESTION)
    kept = [each.node for each in found if isinstance(each.node, IndexNode)]
    assert {node.index_id for node in kept} == {f"entry-{i}" for i in range(6)}
    mapped = SIFTRetriever(index, k=6, object_map={"entry-2": target}).retrieve(QUESTION)
    assert ids(mapped).count("far") == 1
    given = [entry.model_copy(update={"obj": target}) for entry in entries[:1]]
    mapped = SIFTRetriever(index, k=6, objects=given).retrieve(QUESTION)
    assert ids(mapped).count("far") == 1
    own = _entries([TextNode(text="inside", id_="inside"), None])
    index = VectorStoreIndex(objects=own, embed_model=model)
    both = SIFTRetriever(index, k=2, object_map={"entry-1": target}).retrieve(QUESTION)
    assert set(ids(both)) == {"inside", "far"}


def test_any_other_base_follows_its_own(model: HashEmbedding) -> None:
    entries = [*_entries([TextNode(text="rivers", id_="far")]), *NODES[1:]]
    found = SIFTRetriever(_Fixed(entries), k=40, embed_model=model)
    with pytest.warns(UserWarning, match="yields 40 nodes"):
        assert "far" in ids(found.retrieve(QUESTION))


# Stores' odd nodes


def test_nodes_without_text_and_equal_ones(model: HashEmbedding) -> None:
    twice = [*NODES[:6], *(TextNode(text=n.text, metadata=n.metadata) for n in NODES[:6])]
    found = SIFTRetriever(_Fixed([*twice, TextNode(text="")]), k=8, embed_model=model)
    texts = [each.text for each in found.retrieve(QUESTION)]
    assert len(texts) == 8
    assert "" not in texts
    blank = _Fixed([TextNode(text="", id_=str(i)) for i in range(5)])
    found = SIFTRetriever(blank, k=3, embed_model=model)
    assert ids(found.retrieve(QUESTION)) == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["simple", "chroma"])
async def test_no_nodes_and_one(name: str, tmp_path: Path) -> None:
    watch = _Watch()
    empty = VectorStoreIndex([], embed_model=HashEmbedding())
    retriever = SIFTRetriever(empty, callback_manager=CallbackManager([watch]))
    assert retriever.retrieve(QUESTION) == []
    assert await retriever.aretrieve(QUESTION) == []
    assert [event["id"] for event in watch.seen] == [[], []]
    one = await asyncio.to_thread(STORES[name], HashEmbedding(), NODES[:1], tmp_path)
    assert ids(await SIFTRetriever(one).aretrieve(QUESTION)) == [NODES[0].node_id]


def test_nodes_that_come_later_are_found(model: HashEmbedding, tmp_path: Path) -> None:
    index = STORES["chroma"](model, NODES[:20], tmp_path)
    retriever = SIFTRetriever(index)
    retriever.retrieve(QUESTION)
    index.insert_nodes(NODES[20:])
    assert ids(retriever.retrieve(QUESTION)) == best(5)


# In engines


def test_an_engine_with_and_without_differs_only_in_the_nodes(index: VectorStoreIndex) -> None:
    engine = engine_of(SIFTRetriever(index))
    response = engine.query(QUESTION)
    by_id = {node.node_id: node for node in NODES}
    plain = engine_of(_Fixed([by_id[i] for i in best(5)]))
    assert str(response) == str(plain.query(QUESTION))  # the prompt, word for word
    assert ids(response.source_nodes) == best(5)
    later = asyncio.run(engine.aquery(QUESTION))
    assert (str(later), ids(later.source_nodes)) == (str(response), best(5))


def test_chat_engines(index: VectorStoreIndex) -> None:
    llm = MockLLM()
    for kind in (ContextChatEngine, CondensePlusContextChatEngine):
        engine: Any = kind.from_defaults(
            retriever=SIFTRetriever(index),
            llm=llm,
            memory=ChatMemoryBuffer.from_defaults(llm=llm),
        )
        response = engine.chat(QUESTION)
        assert ids(response.source_nodes) == best(5)
        assert "sift_" not in str(response)
        engine.reset()
        assert ids(asyncio.run(engine.achat(QUESTION)).source_nodes) == best(5)


def test_before_a_postprocessor(index: VectorStoreIndex, model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(embed_model=model, vector_store=index, top_n=2)
    engine = engine_of(SIFTRetriever(index, k=10), node_postprocessors=[processor])
    found = engine.query(QUESTION).source_nodes
    assert [each.metadata["sift_rank"] for each in found] == [1, 2]
    plain = index.as_retriever(similarity_top_k=40).retrieve(QUESTION)
    scores = {each.node_id: each.score for each in plain}
    for each in found:
        assert each.metadata["sift_store_score"] == pytest.approx(scores[each.node_id])


# Events


@pytest.mark.parametrize("asynchronous", [False, True])
def test_events_inside_the_querys_span(
    asynchronous: bool, index: VectorStoreIndex, seen: "Seen", spans: dict[str, str | None]
) -> None:
    debug = LlamaDebugHandler(print_trace_on_end=False)
    retriever = SIFTRetriever(index, k=2, callback_manager=CallbackManager([debug]))
    engine = engine_of(retriever)
    found = asyncio.run(engine.aquery(QUESTION)) if asynchronous else engine.query(QUESTION)
    start, selection, end = seen.of(RetrievalStartEvent, SIFTSelectionEvent, RetrievalEndEvent)
    assert selection.ids == ids(end.nodes) == ids(found.source_nodes) == best(2)
    assert start.str_or_query_bundle.query_str == QUESTION
    assert set(selection.seconds) == {"search", "vectors", "select"}
    assert selection.vectors["counts"] == {"object": 0, "store": 40, "cache": 0, "embedded": 0}
    above, span = [], selection.span_id
    while span is not None:
        above.append(span.split("-")[0])
        span = spans[span]
    inner = "SIFTRetriever._aretrieve" if asynchronous else "SIFTRetriever._retrieve"
    assert above[0] == inner
    assert above[-1].startswith("RetrieverQueryEngine.")
    (pair,) = debug.get_event_pairs(CBEventType.RETRIEVE)  # one, as without SIFT
    assert len(pair) == 2


class _Refuses(SIFTCallbackHandler):
    def on_selection(self, event: Event, control: Control) -> None:
        raise PermissionError("not these")


async def test_a_handler_configures_and_one_that_raises_ends_the_query(
    index: VectorStoreIndex,
) -> None:
    watch = _Watch(k=7, noise=5.0)
    retriever = SIFTRetriever(index, k=2, fetch_k=6, callback_manager=CallbackManager([watch]))
    wanted = set(best(40, select=nearest)[:7])
    for found in (
        await asyncio.to_thread(retriever.retrieve, QUESTION),
        await retriever.aretrieve(QUESTION),
    ):
        assert set(ids(found)) == wanted  # fetches as many as the handler wants
    retriever.fetch_k = 50
    assert ids(await retriever.aretrieve(QUESTION)) == best(7, noise=5.0)
    assert [event["candidates"] for event in watch.seen] == [7, 7, 40]
    assert not any(node.text in json.dumps(watch.seen) for node in NODES)
    retriever = SIFTRetriever(index, callback_manager=CallbackManager([_Refuses()]))
    with pytest.raises(PermissionError, match="not these"):
        await asyncio.to_thread(retriever.retrieve, QUESTION)
    with pytest.raises(PermissionError, match="not these"):
        await engine_of(retriever).aquery(QUESTION)


def test_the_callback_manager_of_the_base_is_taken(model: HashEmbedding) -> None:
    watch = _Watch(k=1)
    manager = CallbackManager([watch])
    index = VectorStoreIndex(NODES, embed_model=model, callback_manager=manager)
    assert SIFTRetriever(index).callback_manager is manager
    assert len(SIFTRetriever(index).retrieve(QUESTION)) == 1
    other = CallbackManager([_Watch(k=2)])
    assert len(SIFTRetriever(index, callback_manager=other).retrieve(QUESTION)) == 2


# Asynchronous


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


class _GatedModel(HashEmbedding):
    """Whose own asynchronous methods block, as those of most local models."""

    gate: Any = None

    def _get_query_embedding(self, query: str) -> list[float]:
        self.gate.wait()
        return super()._get_query_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        self.gate.wait()
        return super()._get_text_embeddings(texts)


class _GatedStore(SimpleVectorStore):
    """Without asynchronous methods of its own."""

    def query(self, query: Any, **kwargs: Any) -> Any:
        _GATES[0].wait()
        return super().query(query, **kwargs)


class _GatedBase(_Fixed):
    """Without asynchronous methods of its own."""

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        _GATES[0].wait()
        return super()._retrieve(query_bundle)


class _GatedHandler(SIFTCallbackHandler):
    def on_start(self, event: Event, control: Control) -> None:
        _GATES[0].wait()

    def on_selection(self, event: Event, control: Control) -> None:
        _GATES[0].wait()


_GATES: list[_Gate] = []


@pytest.mark.parametrize("base", ["index", "any"])
@pytest.mark.parametrize(("policy", "waits"), [("auto", 4), ("embed", 5)])
async def test_many_at_once_do_not_hold_up_the_event_loop(
    base: str, policy: vectors.Policy, waits: int
) -> None:
    gate = _Gate()
    _GATES[:] = [gate]
    filled = VectorStoreIndex(
        NODES,
        storage_context=StorageContext.from_defaults(vector_store=_GatedStore()),
        embed_model=HashEmbedding(),
    )
    slow = _GatedModel(gate=gate)
    retriever = SIFTRetriever(
        filled if base == "index" else _GatedBase(NODES),
        embed_model=slow,
        vector_store=filled,
        vectors=policy,
        callback_manager=CallbackManager([_GatedHandler()]),
    )
    opening = asyncio.create_task(gate.keep_open())
    await retriever.aretrieve(QUESTION)
    assert gate.passed == waits  # start, question, search, (nodes,) selection
    found = await asyncio.gather(*(retriever.aretrieve(QUESTION) for _ in range(8)))
    opening.cancel()
    assert all(ids(each) == best(5) for each in found)


# What is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k is 0; it must be at least 1"),
        ({"fetch_k": -1}, "fetch_k is -1; it must be at least 1"),
        ({"budget": 0}, "budget is 0; it must be at least 1"),
        ({"noise": 0.0}, "noise is 0.0; it must be a finite number above 0"),
        ({"vectors": "never"}, 'must be "auto", "store" or "embed"'),
        ({"similarity_top_k": 3}, "similarity_top_k is called fetch_k here"),
    ],
)
def test_settings_are_checked(index: VectorStoreIndex, settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SIFTRetriever(index, **settings)


def test_bases_are_checked(index: VectorStoreIndex) -> None:
    with pytest.raises(ValueError, match=r"filters: such arguments go to index\.as_retriever"):
        SIFTRetriever(index.as_retriever(), filters=topic("rivers"))
    with pytest.raises(ValueError, match=r"no embed_model for the question.*embed_model=\.\.\."):
        SIFTRetriever(_Fixed(NODES))
    wrong: Any = index.vector_store
    with pytest.raises(TypeError, match=r"got SimpleVectorStore. For a vector store: VectorStoreI"):
        SIFTRetriever(wrong)


def test_a_model_of_another_size_is_a_clear_error(index: VectorStoreIndex) -> None:
    small = HashEmbedding(dimensions=8)
    with pytest.raises(
        ValueError, match=r"vector has 8 dimensions and the nodes' have 64.*SIFTRetriever\(embed"
    ):
        SIFTRetriever(
            _Fixed(NODES), embed_model=small, vector_store=index, vectors="store"
        ).retrieve(QUESTION)


def test_prompts_of_the_base_can_be_reached(index: VectorStoreIndex, model: HashEmbedding) -> None:
    fusion = QueryFusionRetriever([index.as_retriever()], llm=MockLLM())
    retriever = SIFTRetriever(fusion, embed_model=model)
    assert list(retriever.get_prompts()) == ["retriever:query_gen_prompt"]
    assert isinstance(index.as_retriever(), VectorIndexRetriever)
