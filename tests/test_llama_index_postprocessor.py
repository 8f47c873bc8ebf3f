"""`SIFTPostprocessor`, alone and in LlamaIndex's query and chat engines."""

import asyncio
import copy
import functools
import json
import pickle
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip("llama_index.core")

from llama_index.core import QueryBundle, VectorStoreIndex, get_response_synthesizer
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.callbacks import CallbackManager, CBEventType, EventPayload
from llama_index.core.callbacks.base_handler import BaseCallbackHandler
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.schema import (
    ImageNode,
    IndexNode,
    MetadataMode,
    Node,
    NodeWithScore,
    TextNode,
)
from llama_index.core.tools import QueryEngineTool
from llama_index_sift import SIFTCallbackHandler, SIFTPostprocessor, SIFTSelectionEvent
from llama_index_stores import STORES, HashEmbedding, embedded_text
from llama_index_stores import nodes as passages

from sift_rag import mmr, nearest, sift
from sift_rag.events import Control, Event
from sift_rag.selection import Selection
from sift_rag.stopping import gain_share

if TYPE_CHECKING:
    from llama_index_watching import Seen

pytest_plugins = ["llama_index_watching"]
pytestmark = pytest.mark.usefixtures("no_defaults")
QUESTION = "Which rivers feed the mills and towns?"
OTHER = "What do the forests border?"
NODES = passages(30)
TOLD = ["sift_rank", "sift_gain", "sift_uncertainty", "sift_coverage", "sift_store_score"]


@pytest.fixture
def model() -> HashEmbedding:
    return HashEmbedding()


@pytest.fixture
def index(model: HashEmbedding, tmp_path: Path) -> VectorStoreIndex:
    made = STORES["simple"](model, NODES, tmp_path)
    model.reset()
    return made


class _Legacy(BaseCallbackHandler):
    """Keeps what the CallbackManager tells of reranking."""

    def __init__(self) -> None:
        super().__init__([], [])
        self.told: list[tuple[str, dict[Any, Any] | None]] = []

    def on_event_start(
        self,
        event_type: CBEventType,
        payload: Any = None,
        event_id: str = "",
        parent_id: str = "",
        **kwargs: Any,
    ) -> str:
        if event_type == CBEventType.RERANKING:
            self.told.append(("start", payload))
        return event_id

    def on_event_end(
        self, event_type: CBEventType, payload: Any = None, event_id: str = "", **kwargs: Any
    ) -> None:
        if event_type == CBEventType.RERANKING:
            self.told.append(("end", payload))

    def start_trace(self, trace_id: str | None = None) -> None:
        pass

    def end_trace(self, trace_id: str | None = None, trace_map: Any = None) -> None:
        pass


class _Watch(SIFTCallbackHandler):
    """Keeps the selections."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.seen: list[Event] = []

    def on_selection(self, event: Event, control: Control) -> None:
        self.seen.append(event)


class _Fixed(BaseRetriever):
    """Yields what it was made with."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        self.nodes = nodes
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(self.nodes)


def scored(nodes: Any) -> list[NodeWithScore]:
    return [NodeWithScore(node=node, score=0.9 - 0.01 * i) for i, node in enumerate(nodes)]


def ids(nodes: list[NodeWithScore]) -> list[str]:
    return [each.node.node_id for each in nodes]


def picked(k: int, *questions: str, select: Any = sift, **settings: Any) -> Selection:
    """What the core selects of all nodes, given the vectors."""
    embed = HashEmbedding().vector
    rows = np.array([embed(embedded_text(node)) for node in NODES])
    query = np.array([embed(question) for question in questions or (QUESTION,)])
    chosen: Selection = select(query, rows, k, **settings)
    return chosen


def best(k: int, *questions: str, **settings: Any) -> list[str]:
    return [NODES[i].node_id for i in picked(k, *questions, **settings).indices]


def engine_of(retriever: Any, *processors: Any, **settings: Any) -> RetrieverQueryEngine:
    """An engine whose response is the prompt that the model got."""
    return RetrieverQueryEngine(
        retriever,
        response_synthesizer=get_response_synthesizer(llm=MockLLM()),
        node_postprocessors=list(processors),
        **settings,
    )


def test_it_selects_what_the_core_selects_and_remembers(model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(top_n=4, embed_model=model)
    found = processor.postprocess_nodes(scored(NODES), query_str=QUESTION)
    chosen = picked(4)
    assert ids(found) == best(4)
    assert [each.metadata["sift_rank"] for each in found] == [1, 2, 3, 4]
    left = chosen.uncertainty / chosen.initial_uncertainty
    np.testing.assert_allclose([each.metadata["sift_uncertainty"] for each in found], left)
    gains = chosen.gains / chosen.initial_uncertainty
    np.testing.assert_allclose([each.metadata["sift_gain"] for each in found], gains)
    np.testing.assert_allclose([each.score or 0.0 for each in found], [1.0, *left[:-1]])
    json.dumps([each.metadata for each in found])
    assert (model.texts, model.batches, model.queries) == (30, 1, 1)
    processor.postprocess_nodes(scored(NODES), query_str=QUESTION)
    assert (model.texts, model.queries) == (30, 2)


async def test_async_gives_the_same(model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(top_n=4, embed_model=model)
    wanted = await asyncio.to_thread(processor.postprocess_nodes, scored(NODES), None, QUESTION)
    found = await processor.apostprocess_nodes(scored(NODES), query_str=QUESTION)
    assert found == wanted


def test_the_callers_nodes_are_untouched_and_the_retrievers_score_is_kept(
    model: HashEmbedding,
) -> None:
    given = scored(passages(30))
    before = [copy.deepcopy(each) for each in given]
    found = SIFTPostprocessor(embed_model=model).postprocess_nodes(given, query_str=QUESTION)
    scores = {each.node.node_id: each.score for each in before}
    by_id = {each.node.node_id: each.node for each in given}
    for each in found:
        assert each.metadata["sift_store_score"] == scores[each.node_id]
        assert each.node is not by_id[each.node_id]
        assert each.node.relationships == by_id[each.node_id].relationships
        each.metadata["sift_rank"] = each.metadata["topic"] = None
        each.node.relationships.clear()
        each.node.excluded_llm_metadata_keys.append("topic")
        each.node.set_content("nothing")  # as postprocessors after it may
        each.score = 0.0
    assert given == before


def test_prompts_and_embeddings_do_not_show_what_is_told(model: HashEmbedding) -> None:
    given = {each.node.node_id: each.node for each in scored(NODES)}
    for each in SIFTPostprocessor(embed_model=model).postprocess_nodes(
        scored(NODES), query_str=QUESTION
    ):
        own = given[each.node_id]
        assert each.metadata.keys() - own.metadata.keys() == set(TOLD)
        for mode in (MetadataMode.LLM, MetadataMode.EMBED, MetadataMode.NONE):
            assert each.node.get_content(mode) == own.get_content(mode)
        assert "sift_rank: " in each.node.get_content(MetadataMode.ALL)


def test_without_marks_the_copies_are_equal_to_the_nodes(model: HashEmbedding) -> None:
    given = scored(NODES)
    processor = SIFTPostprocessor(embed_model=model, mark=False)
    found = processor.postprocess_nodes(given, query_str=QUESTION)
    assert ids(found) == best(5)
    by_id = {each.node.node_id: each.node for each in given}
    assert all(each.node == by_id[each.node_id] for each in found)
    assert not any(each.node is by_id[each.node_id] for each in found)
    assert sorted((each.score or 0.0 for each in found), reverse=True) == [s.score for s in found]


def test_every_sort_of_node_stays_what_it_is(model: HashEmbedding) -> None:
    target = TextNode(text="far away")
    given: list[Any] = [
        IndexNode(text="the rivers", index_id="rivers-index", obj=target),
        ImageNode(text="a mill", image="aGVsbG8="),
        Node.model_validate({"text_resource": {"text": "the towns"}, "metadata": {"page": 3}}),
        TextNode(text="mills"),
    ]
    processor = SIFTPostprocessor(embed_model=model, top_n=4)
    found = processor.postprocess_nodes(scored(given), query_str=QUESTION)
    by_id = {each.node_id: each.node for each in found}
    assert [type(by_id[node.node_id]) for node in given] == [IndexNode, ImageNode, Node, TextNode]
    entry: Any = by_id[given[0].node_id]
    assert (entry.index_id, entry.obj) == ("rivers-index", target)
    assert entry.obj is target
    assert by_id[given[2].node_id].get_content(MetadataMode.LLM) == "page: 3\n\nthe towns"


def _flat(query: Any, rows: Any, k: int, **settings: Any) -> Selection:
    """The nearest, of which only the first tells anything."""
    found = nearest(query, rows, k, **settings)
    gains = np.zeros(len(found.indices))
    left = np.zeros(len(found.indices))
    return Selection(found.indices, gains, left, 1.0, found.context)


@pytest.mark.parametrize("select", [sift, mmr, nearest, _flat])
def test_scores_fall_strictly_also_where_nothing_more_is_told(
    select: Any, model: HashEmbedding
) -> None:
    same = [*NODES[:10], *(TextNode(text=NODES[0].text) for _ in range(20))]
    processor = SIFTPostprocessor(embed_model=model, top_n=30, select=select)
    found = processor.postprocess_nodes(scored(same), query_str=QUESTION)
    scores = np.array([each.score for each in found], dtype=np.float32)
    assert len(scores) == 30
    assert scores[0] == 1.0
    assert (np.diff(scores) < 0).all()
    assert scores[-1] > 0


def test_no_nodes_one_node_and_more_than_there_are(model: HashEmbedding, seen: "Seen") -> None:
    processor = SIFTPostprocessor(embed_model=model)
    assert processor.postprocess_nodes([], query_str=QUESTION) == []
    assert processor.postprocess_nodes([]) == []
    assert asyncio.run(processor.apostprocess_nodes([], query_str=QUESTION)) == []
    assert model.queries == 0
    kinds = [ReRankStartEvent, SIFTSelectionEvent, ReRankEndEvent]
    assert [type(event) for event in seen.of(*kinds)] == kinds * 3
    (one,) = processor.postprocess_nodes(scored(NODES[:1]), query_str=QUESTION)
    assert (one.node_id, one.score) == (NODES[0].node_id, 1.0)
    assert len(processor.postprocess_nodes(scored(NODES[:3]), query_str=QUESTION)) == 3


def test_nodes_without_text_or_score_and_equal_ones(model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(embed_model=model, top_n=3)
    odd = [TextNode(text="rivers", id_="a"), TextNode(text="rivers", id_="a"), TextNode(text="")]
    found = processor.postprocess_nodes([NodeWithScore(node=n) for n in odd], query_str=QUESTION)
    assert ids(found) == ["a", "a"]  # the empty one has no vector
    assert "sift_store_score" not in found[0].metadata
    blank = scored([TextNode(text="", id_=str(i)) for i in range(5)])
    found = processor.postprocess_nodes(blank, query_str=QUESTION)
    assert ids(found) == ["0", "1", "2"]
    assert [each.metadata["sift_gain"] for each in found] == [0.0] * 3
    assert [each.score for each in found] == pytest.approx([1.0] * 3, abs=1e-5)


def test_the_bundles_vector_is_used_and_none_is_written_into_it(model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(embed_model=model)
    bundle = QueryBundle(QUESTION, embedding=model.vector(OTHER).tolist())
    assert ids(processor.postprocess_nodes(scored(NODES), bundle)) == best(5, OTHER)
    assert model.queries == 0
    bundle = QueryBundle(QUESTION)
    assert ids(processor.postprocess_nodes(scored(NODES), bundle)) == best(5)
    assert bundle == QueryBundle(QUESTION)
    only = QueryBundle("", embedding=model.vector(OTHER).tolist())
    assert ids(processor.postprocess_nodes(scored(NODES), only)) == best(5, OTHER)


async def test_several_texts_are_several_queries(model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(embed_model=model)
    assert best(5, QUESTION, OTHER) not in (best(5), best(5, OTHER))
    bundle = QueryBundle(QUESTION, custom_embedding_strs=[QUESTION, OTHER])
    assert ids(processor.postprocess_nodes(scored(NODES), bundle)) == best(5, QUESTION, OTHER)
    assert ids(await processor.apostprocess_nodes(scored(NODES), bundle)) == best(
        5, QUESTION, OTHER
    )
    # What a retriever leaves there is the mean of both.
    bundle.embedding = [0.5] * 64
    assert ids(processor.postprocess_nodes(scored(NODES), bundle)) == best(5, QUESTION, OTHER)
    one = QueryBundle(QUESTION, custom_embedding_strs=[OTHER, OTHER, " "])
    assert ids(processor.postprocess_nodes(scored(NODES), one)) == best(5, OTHER)


def test_a_bundles_vector_of_another_model_is_not_used(model: HashEmbedding) -> None:
    """The retriever left it there, and SIFT has another model."""
    bundle = QueryBundle(QUESTION, embedding=[1.0, 0.0, 0.0])
    processor = SIFTPostprocessor(embed_model=model)
    assert ids(processor.postprocess_nodes(scored(NODES), bundle)) == best(5)
    carrying = [TextNode(text="rivers", embedding=model.vector("rivers").tolist())]
    with pytest.raises(
        ValueError, match=r"3 dimensions and the nodes' have 64.*embed_model=\.\.\."
    ):
        SIFTPostprocessor().postprocess_nodes(scored(carrying), bundle)


def test_what_is_missing_is_said(model: HashEmbedding) -> None:
    processor = SIFTPostprocessor()
    carrying = [TextNode(text="rivers", embedding=model.vector("rivers").tolist())]
    wanted = (
        r"SIFTPostprocessor has no embed_model for the question; .*SIFTPostprocessor\(embed_model"
    )
    with pytest.raises(ValueError, match=wanted):
        processor.postprocess_nodes(scored(carrying), query_str=QUESTION)
    bundle = QueryBundle(QUESTION, embedding=model.vector(QUESTION).tolist())
    assert len(processor.postprocess_nodes(scored(carrying), bundle)) == 1
    with pytest.raises(ValueError, match="30 of 30 passages have no vector"):
        processor.postprocess_nodes(scored(NODES), bundle)
    processor = SIFTPostprocessor(embed_model=model)
    with pytest.raises(ValueError, match="SIFTPostprocessor got no question; give query_bundle="):
        processor.postprocess_nodes(scored(NODES))
    with pytest.raises(ValueError, match="neither a text nor an embedding"):
        processor.postprocess_nodes(scored(NODES), query_str="")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"top_n": 0}, "top_n is 0; it must be at least 1"),
        ({"budget": 0}, "budget is 0; it must be at least 1"),
        ({"noise": -1.0}, "noise is -1.0; it must be a finite number above 0"),
        ({"vectors": "never"}, "'auto', 'store' or 'embed'"),
    ],
)
def test_settings_are_checked(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SIFTPostprocessor(**settings)


def test_settings_and_how_they_may_be_changed(model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(embed_model=model, top_n=10)
    every = processor.postprocess_nodes(scored(NODES), query_str=QUESTION)
    processor.stop = gain_share(0.6)
    cut = processor.postprocess_nodes(scored(NODES), query_str=QUESTION)
    assert 1 <= len(cut) < 10
    assert ids(cut) == ids(every)[: len(cut)]
    processor.stop, processor.noise, processor.top_n = None, 5.0, 6
    found = processor.postprocess_nodes(scored(NODES), query_str=QUESTION)
    assert ids(found) == best(6, noise=5.0)
    linear = functools.partial(sift, kernel="linear", noise=0.01)
    processor = SIFTPostprocessor(embed_model=model, top_n=6, select=linear)
    found = processor.postprocess_nodes(scored(NODES), query_str=QUESTION)
    assert ids(found) == best(6, select=linear)
    processor.top_n = 0
    with pytest.raises(ValueError, match="top_n is 0"):
        processor.postprocess_nodes(scored(NODES), query_str=QUESTION)


def test_a_budget_counts_what_the_prompt_shows(model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(
        embed_model=model, top_n=10, budget=60, length_function=lambda text: len(text.split())
    )
    found = processor.postprocess_nodes(scored(NODES), query_str=QUESTION)
    shown = [len(each.node.get_content(MetadataMode.LLM).split()) for each in found]
    assert min(shown) > len(found[0].text.split())  # the metadata count
    assert 1 <= sum(shown) <= 60
    processor.budget = 3
    with pytest.warns(UserWarning, match="budget is 3 tokens and the shortest passage has"):
        assert processor.postprocess_nodes(scored(NODES), query_str=QUESTION) == []


# Vectors, from where they come


@pytest.mark.parametrize("name", STORES)
def test_a_store_gives_the_vectors_and_no_node_is_embedded(name: str, tmp_path: Path) -> None:
    model = HashEmbedding()
    index = STORES[name](model, NODES, tmp_path)
    model.reset()
    watch = _Watch()
    processor = SIFTPostprocessor(
        embed_model=model, vector_store=index, callback_manager=CallbackManager([watch])
    )
    retriever = index.as_retriever(similarity_top_k=30)
    bundle = QueryBundle(QUESTION)
    found = processor.postprocess_nodes(retriever.retrieve(bundle), bundle)
    assert ids(found) == best(5)
    assert (model.texts, model.queries) == (0, 1)  # the retriever's vector of the question is used
    later = asyncio.run(_retrieved(retriever, processor))
    assert ids(later) == best(5)
    assert model.texts == 0
    counts = {"object": 0, "store": 30, "cache": 0, "embedded": 0}
    assert [event["vectors"]["counts"] for event in watch.seen] == [counts] * 2


async def _retrieved(retriever: Any, processor: Any) -> list[NodeWithScore]:
    bundle = QueryBundle(QUESTION)
    found: list[NodeWithScore] = await processor.apostprocess_nodes(
        await retriever.aretrieve(bundle), bundle
    )
    return found


def test_vectors_that_nodes_carry_are_used(model: HashEmbedding) -> None:
    given = [
        node.model_copy(update={"embedding": model.vector(embedded_text(node)).tolist()})
        for node in NODES
    ]
    processor = SIFTPostprocessor(embed_model=model, vectors="store")
    assert ids(processor.postprocess_nodes(scored(given), query_str=QUESTION)) == best(5)
    keyed = [
        TextNode(text="x", id_=node.node_id, metadata={"v": given[i].embedding})
        for i, node in enumerate(NODES)
    ]
    processor = SIFTPostprocessor(embed_model=model, vectors="store", vector_key="v")
    assert ids(processor.postprocess_nodes(scored(keyed), query_str=QUESTION)) == best(5)
    assert model.texts == 0
    with pytest.raises(ValueError, match=r"30 of 30 passages have no vector.*forbids to embed"):
        processor.postprocess_nodes(scored(NODES), query_str=QUESTION)


def test_a_source_is_shared_by_giving_it(model: HashEmbedding) -> None:
    first = SIFTPostprocessor(embed_model=model)
    first.postprocess_nodes(scored(NODES), query_str=QUESTION)
    model.reset()
    second = SIFTPostprocessor(embed_model=model, top_n=2, source=first.source)
    assert ids(second.postprocess_nodes(scored(NODES), query_str=QUESTION)) == best(2)
    assert model.texts == 0


def test_after_sift_the_retrievers_score_is_still_the_retrievers(model: HashEmbedding) -> None:
    first = SIFTPostprocessor(embed_model=model, top_n=10)
    second = SIFTPostprocessor(embed_model=model, top_n=3)
    wide = first.postprocess_nodes(scored(NODES), query_str=QUESTION)
    found = second.postprocess_nodes(wide, query_str=QUESTION)
    kept = {each.node_id: each.metadata["sift_store_score"] for each in wide}
    assert [each.metadata["sift_rank"] for each in found] == [1, 2, 3]
    assert [each.metadata["sift_store_score"] for each in found] == [kept[i] for i in ids(found)]
    assert found[0].node.excluded_llm_metadata_keys.count("sift_rank") == 1


# In engines


def test_an_engine_with_and_without_differs_only_in_the_nodes(
    index: VectorStoreIndex, model: HashEmbedding
) -> None:
    processor = SIFTPostprocessor(embed_model=model, vector_store=index)
    engine = index.as_query_engine(
        llm=MockLLM(), similarity_top_k=30, node_postprocessors=[processor]
    )
    response = engine.query(QUESTION)
    assert ids(response.source_nodes) == best(5)
    by_id = {node.node_id: node for node in NODES}
    plain = engine_of(_Fixed([NodeWithScore(node=by_id[i]) for i in best(5)]))
    assert str(response) == str(plain.query(QUESTION))  # the prompt, word for word
    assert model.texts == 0
    later = asyncio.run(engine.aquery(QUESTION))
    assert (str(later), ids(later.source_nodes)) == (str(response), best(5))


def test_chat_engines(index: VectorStoreIndex, model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(embed_model=model, vector_store=index)
    retriever = index.as_retriever(similarity_top_k=30)
    llm = MockLLM()
    for kind in (ContextChatEngine, CondensePlusContextChatEngine):
        engine: Any = kind.from_defaults(
            retriever=retriever,
            llm=llm,
            node_postprocessors=[processor],
            memory=ChatMemoryBuffer.from_defaults(llm=llm),
        )
        response = engine.chat(QUESTION)
        assert ids(response.source_nodes) == best(5)
        assert "sift_" not in str(response)
        engine.reset()
        assert ids(asyncio.run(engine.achat(QUESTION)).source_nodes) == best(5)


class _Halves(BaseQuestionGenerator):
    """Asks both questions, whatever was asked."""

    def generate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return [SubQuestion(sub_question=q, tool_name="notes") for q in (QUESTION, OTHER)]

    async def agenerate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)

    def _get_prompts(self) -> Any:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass


def test_sub_questions(index: VectorStoreIndex, model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(embed_model=model, vector_store=index)
    inner = engine_of(index.as_retriever(similarity_top_k=30), processor)
    engine = SubQuestionQueryEngine(
        _Halves(),
        get_response_synthesizer(llm=MockLLM()),
        [QueryEngineTool.from_defaults(inner, name="notes", description="notes of the county")],
        verbose=False,
    )
    found = {each.node_id for each in engine.query("Tell me everything.").source_nodes}
    assert found >= {*best(5), *best(5, OTHER)}


# Events


@pytest.mark.parametrize("asynchronous", [False, True])
def test_both_event_systems_inside_the_querys_span(
    asynchronous: bool,
    index: VectorStoreIndex,
    model: HashEmbedding,
    seen: "Seen",
    spans: dict[str, str | None],
) -> None:
    legacy = _Legacy()
    processor = SIFTPostprocessor(embed_model=model, vector_store=index, top_n=2)
    retriever = index.as_retriever(similarity_top_k=30)
    engine = engine_of(retriever, processor, callback_manager=CallbackManager([legacy]))
    found = asyncio.run(engine.aquery(QUESTION)) if asynchronous else engine.query(QUESTION)
    start, selection, end = seen.of(ReRankStartEvent, SIFTSelectionEvent, ReRankEndEvent)
    assert (start.top_n, start.model_name, len(start.nodes)) == (2, "SIFTPostprocessor", 30)
    assert start.query.query_str == QUESTION
    assert ids(end.nodes) == ids(found.source_nodes) == selection.ids == best(2)
    assert selection.scores == [each.metadata["sift_store_score"] for each in found.source_nodes]
    assert selection.candidates == 30
    assert set(selection.seconds) == {"search", "vectors", "select"}
    for event in (start, selection, end):
        above, span = [], event.span_id
        while span is not None:
            above.append(span.split("-")[0])
            span = spans[span]
        assert above[0].startswith("SIFTPostprocessor.")
        assert above[-1].startswith("RetrieverQueryEngine.")
    (one, opened), (two, closed) = legacy.told
    assert (one, two) == ("start", "end")
    assert opened is not None
    assert closed is not None
    assert (opened[EventPayload.TOP_K], opened[EventPayload.QUERY_STR]) == (2, QUESTION)
    assert ids(closed[EventPayload.NODES]) == best(2)


class _Broken(HashEmbedding):
    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        raise ConnectionError("no network")


async def test_the_end_is_told_also_after_an_error(seen: "Seen") -> None:
    legacy = _Legacy()
    processor = SIFTPostprocessor(embed_model=_Broken(), callback_manager=CallbackManager([legacy]))
    with pytest.raises(ConnectionError, match="no network"):
        processor.postprocess_nodes(scored(NODES), query_str=QUESTION)
    with pytest.raises(ConnectionError, match="no network"):
        await processor.apostprocess_nodes(scored(NODES), query_str=QUESTION)
    kinds = [ReRankStartEvent, ReRankEndEvent]
    told = seen.of(*kinds, SIFTSelectionEvent)
    assert [type(event) for event in told] == kinds * 2
    assert [event.nodes for event in told[1::2]] == [[], []]
    assert [name for name, _ in legacy.told] == ["start", "end"] * 2
    assert not any(payload for _, payload in legacy.told[1::2])  # the model's event has the error


class _Refuses(SIFTCallbackHandler):
    def on_selection(self, event: Event, control: Control) -> None:
        raise PermissionError("not these")


class _RefusesAll(SIFTCallbackHandler):
    def on_start(self, event: Event, control: Control) -> None:
        raise PermissionError("not this")


async def test_a_handler_that_raises_ends_the_query_with_its_error(
    index: VectorStoreIndex, model: HashEmbedding, seen: "Seen"
) -> None:
    processor = SIFTPostprocessor(embed_model=model, vector_store=index)
    for handler in (_Refuses(), _RefusesAll()):
        manager = CallbackManager([handler])
        engine = engine_of(index.as_retriever(), processor, callback_manager=manager)
        with pytest.raises(PermissionError, match="not th"):
            await asyncio.to_thread(engine.query, QUESTION)
        with pytest.raises(PermissionError, match="not th"):
            await engine.aquery(QUESTION)
    # What was begun was ended; the second handler lets nothing begin.
    assert [type(e) for e in seen.of(ReRankStartEvent, ReRankEndEvent)] == [
        ReRankStartEvent,
        ReRankEndEvent,
    ] * 2


async def test_a_handler_of_the_engine_watches_and_configures(
    index: VectorStoreIndex, model: HashEmbedding
) -> None:
    watch = _Watch(k=7, noise=5.0)
    processor = SIFTPostprocessor(embed_model=model, vector_store=index, top_n=2)
    retriever = index.as_retriever(similarity_top_k=30)
    engine = engine_of(retriever, processor, callback_manager=CallbackManager([watch, watch]))
    wanted = best(7, noise=5.0)
    assert ids((await asyncio.to_thread(engine.query, QUESTION)).source_nodes) == wanted
    assert ids((await engine.aquery(QUESTION)).source_nodes) == wanted
    assert [event["id"] for event in watch.seen] == [wanted] * 2
    assert not any(node.text in json.dumps(watch.seen) for node in NODES)
    assert processor.top_n == 2


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

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._get_text_embeddings(texts)


class _GatedHandler(SIFTCallbackHandler):
    def __init__(self, gate: _Gate) -> None:
        super().__init__()
        self.gate = gate

    def on_start(self, event: Event, control: Control) -> None:
        self.gate.wait()

    def on_selection(self, event: Event, control: Control) -> None:
        self.gate.wait()


async def test_many_at_once_do_not_hold_up_the_event_loop() -> None:
    gate = _Gate()
    processor = SIFTPostprocessor(
        embed_model=_GatedModel(gate=gate),
        callback_manager=CallbackManager([_GatedHandler(gate)]),
    )
    opening = asyncio.create_task(gate.keep_open())
    await processor.apostprocess_nodes(scored(NODES), query_str=QUESTION)
    assert gate.passed == 4  # start, nodes, question, selection
    calls = (processor.apostprocess_nodes(scored(NODES), query_str=QUESTION) for _ in range(8))
    found = await asyncio.gather(*calls)
    opening.cancel()
    assert all(ids(each) == best(5) for each in found)


async def test_a_cancelled_call_ends_its_events(seen: "Seen") -> None:
    gate = _Gate()
    processor = SIFTPostprocessor(embed_model=_GatedModel(gate=gate))
    call = asyncio.create_task(processor.apostprocess_nodes(scored(NODES), query_str=QUESTION))
    while not gate.waiting:
        await asyncio.sleep(0.001)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    opening = asyncio.create_task(gate.keep_open())
    assert [type(e) for e in seen.of(ReRankStartEvent, ReRankEndEvent)] == [
        ReRankStartEvent,
        ReRankEndEvent,
    ]
    found = await processor.apostprocess_nodes(scored(NODES), query_str=QUESTION)
    opening.cancel()
    assert ids(found) == best(5)


# Writing and reading


def test_dicts_and_json_round_trip(model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(
        top_n=3, noise=5.0, budget=900, vectors="embed", vector_key="v", mark=False
    )
    for again in (
        SIFTPostprocessor.from_dict(processor.to_dict()),
        SIFTPostprocessor.from_json(processor.to_json()),
    ):
        assert again.to_dict() == processor.to_dict()
        assert (again.top_n, again.noise, again.budget, again.mark) == (3, 5.0, 900, False)
        assert (again.vectors, again.vector_key, again.embed_model) == ("embed", "v", None)
    assert processor.to_dict()["class_name"] == SIFTPostprocessor.class_name()


def test_what_cannot_be_written_is_asked_for(model: HashEmbedding) -> None:
    processor = SIFTPostprocessor(embed_model=model, select=mmr, stop=gain_share(0.5), top_n=3)
    data = json.loads(processor.to_json())
    assert data["needs"] == ["embed_model", "select", "stop"]
    with pytest.raises(ValueError, match=r"select, stop cannot be written.*select=\.\.\., stop="):
        SIFTPostprocessor.from_dict(data, embed_model=model)
    again = SIFTPostprocessor.from_dict(data, embed_model=model, select=mmr, stop=None, top_n=4)
    found = again.postprocess_nodes(scored(NODES), query_str=QUESTION)
    assert ids(found) == best(4, select=mmr)
    assert data["needs"] == ["embed_model", "select", "stop"]  # what was given stays as it was


def test_it_is_pickled_with_what_can_be(model: HashEmbedding) -> None:
    again = pickle.loads(pickle.dumps(SIFTPostprocessor(top_n=3, noise=5.0, select=mmr)))
    assert (again.top_n, again.noise, again.select) == (3, 5.0, mmr)
    again.embed_model = model
    again.noise = None
    found = again.postprocess_nodes(scored(NODES), query_str=QUESTION)
    assert ids(found) == best(3, select=mmr)
