"""The query engine that `sift_query_engine` makes, and what users build of the same parts."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from conftest import CONFIGS, byte_tokenizer
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.callbacks.schema import CBEventType
from llama_index.core.chat_engine import CondenseQuestionChatEngine, ContextChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import (
    RetrieverQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
)
from llama_index.core.question_gen.types import BaseQuestionGenerator, SubQuestion
from llama_index.core.schema import MetadataMode, QueryBundle, TextNode
from llama_index.core.selectors import EmbeddingSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index_sift import (
    SIFTLLM,
    SIFTCallbackHandler,
    SIFTEmbedding,
    SIFTPostprocessor,
    SIFTRetriever,
    TTTSynthesizer,
    sift_query_engine,
)
from transformers import AutoModelForCausalLM

from sift_rag.engine import Engine
from sift_rag.tiny import world
from sift_rag.training import TrainingConfig

PASSAGES = [
    "The Korgost pump stands in Oslo. The Korgost pump is inspected by Tanaka.",
    "The Korgost pump is located in Oslo. It is looked after by Tanaka.",
    "The Korgost pump weighs 340 kg. The Korgost pump is painted blue.",
    *(world.passage(device, seed=5) for device in world.devices(8, seed=5)),
]
QUESTION = "Who inspects the Korgost pump?"
MODES = ("stuff", "train", "both", "closed_book")
WAYS = ("sync", "async", "stream", "astream")


@pytest.fixture(scope="module")
def tiny() -> Iterator[Engine]:
    with Engine.tiny() as engine:
        yield engine


@pytest.fixture(scope="module")
def index() -> VectorStoreIndex:
    nodes = [TextNode(text=text, id_=f"n{i}") for i, text in enumerate(PASSAGES)]
    return VectorStoreIndex(nodes, embed_model=SIFTEmbedding(device="cpu"))


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def made(index: Any, tiny: Any, way: str = "sync", **more: Any) -> RetrieverQueryEngine:
    return sift_query_engine(index, tiny, k=2, streaming="stream" in way, **more)


async def ask(engine: Any, way: str, question: Any = QUESTION) -> tuple[str, Any]:
    """The answer and its response."""
    if way in ("sync", "stream"):
        response = engine.query(question)
    else:
        response = await engine.aquery(question)
    if way == "astream":
        text = "".join([piece async for piece in response.async_response_gen()]).strip()
    elif way == "stream":
        text = "".join(response.response_gen).strip()
    else:
        text = response.response
    return text, response


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES)
async def test_it_answers_as_the_engine_does_from_sifts_nodes(
    index: VectorStoreIndex, tiny: Engine, mode: Any, way: str
) -> None:
    text, response = await ask(made(index, tiny, way, mode=mode), way)
    nodes = response.source_nodes
    selected = SIFTRetriever(index, k=2).retrieve(QUESTION)
    assert [each.node_id for each in nodes] == [each.node_id for each in selected]
    assert len(nodes) == 2
    texts = [each.node.get_content(metadata_mode=MetadataMode.NONE) for each in nodes]
    assert set(texts) < set(PASSAGES)
    assert text == tiny.answer(QUESTION, texts, mode=mode).text
    assert response.metadata.keys() == {each.node_id for each in nodes}


async def test_its_settings_reach_the_parts(index: VectorStoreIndex, tiny: Engine) -> None:
    engine = made(index, SIFTLLM(engine=tiny, stop=["nak"]), fetch_k=7, noise=0.5)
    retriever: Any = engine.retriever
    assert (retriever.k, retriever.fetch_k) == (2, 7)
    text, _ = await ask(engine, "sync")
    assert text == "Ta"
    base = index.as_retriever(similarity_top_k=3)
    _, response = await ask(sift_query_engine(base, tiny, k=1, mode="stuff"), "sync")
    assert len(response.source_nodes) == 1
    with pytest.raises(ValueError, match="mode is 'stuffed'"):
        sift_query_engine(index, tiny, mode="stuffed")  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
async def test_an_index_without_nodes(tiny: Engine, way: str) -> None:
    empty = VectorStoreIndex([], embed_model=SIFTEmbedding(device="cpu"))
    text, response = await ask(made(empty, tiny, way), way)
    assert text == "Empty Response"
    assert response.source_nodes == []


async def test_prompts_are_those_of_the_synthesizer(index: VectorStoreIndex, tiny: Engine) -> None:
    engine = made(index, tiny)
    names = {"response_synthesizer:text_qa_template", "response_synthesizer:ttt_template"}
    assert names <= set(engine.get_prompts())


# Handlers and events


class Watch(SIFTCallbackHandler):
    """Keeps what it is told."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.told: list[str] = []

    def on_start(self, event: Any, control: Any) -> None:
        super().on_start(event, control)
        self.told.append("start " + event["mode"])

    def on_selection(self, event: Any, control: Any) -> None:
        self.told.append(f"selected {len(event['id'])}")

    def on_train_step(self, event: Any, control: Any) -> None:
        super().on_train_step(event, control)
        self.told.append(f"step of {event['steps']}")

    def on_answer(self, event: Any, control: Any) -> None:
        self.told.append("answer")


@pytest.mark.parametrize("way", WAYS)
async def test_a_handler_configures_selection_and_training(
    index: VectorStoreIndex, tiny: Engine, way: str
) -> None:
    training = TrainingConfig(epochs=3, rank=8)
    watch = Watch(k=1, training=training, stop_when=lambda step: step["step"] == 2)
    debug = LlamaDebugHandler(print_trace_on_end=False)
    manager = CallbackManager([watch, debug])
    engine = made(index, tiny, way, callback_manager=manager)
    _, response = await ask(engine, way)
    assert len(response.source_nodes) == 1
    steps = ["step of 3"] * 2
    assert watch.told == ["start retrieve", "selected 1", "start train", *steps, "answer"]
    for kind in (CBEventType.QUERY, CBEventType.RETRIEVE, CBEventType.SYNTHESIZE, CBEventType.LLM):
        assert len(debug.get_event_pairs(kind)) == 1


@pytest.mark.parametrize("way", WAYS)
async def test_a_handler_that_raises_ends_the_query(
    index: VectorStoreIndex, tiny: Engine, way: str
) -> None:
    class Refuse(SIFTCallbackHandler):
        def on_train_step(self, event: Any, control: Any) -> None:
            raise PermissionError("no")

    engine = made(index, tiny, way, callback_manager=CallbackManager([Refuse()]))
    with pytest.raises(PermissionError):
        await ask(engine, way)
    assert (await ask(made(index, tiny, way), way))[0] == "Tanaka"


@pytest.mark.parametrize("way", WAYS)
async def test_all_events_are_inside_the_querys_span(
    index: VectorStoreIndex, tiny: Engine, way: str
) -> None:
    spans = SimpleSpanHandler()
    heard: list[tuple[str, bool, bool]] = []

    class Hear(BaseEventHandler):
        def handle(self, event: Any, **kwargs: Any) -> None:
            known = {s.id_: s.parent_id for s in [*spans.completed_spans]}
            known |= {s.id_: s.parent_id for s in spans.open_spans.values()}
            span, chain = event.span_id, []
            while span is not None:
                chain.append(span)
                span = known[span]
            if event.class_name().startswith(("TTT", "SIFT")):
                within = any(".query-" in s or ".aquery-" in s for s in chain)
                are_open = all(s in spans.open_spans for s in chain)
                heard.append((event.class_name(), within, are_open))

    root = get_dispatcher()
    before = list(root.event_handlers), list(root.span_handlers)
    root.add_event_handler(Hear())
    root.add_span_handler(spans)
    try:
        await ask(made(index, tiny, way), way)
    finally:
        root.event_handlers, root.span_handlers = before
    names = [name for name, _, _ in heard]
    steps = ["TTTStepEvent"] * (len(names) - 3)
    assert len(steps) > 1
    assert names == ["SIFTSelectionEvent", "TTTStartEvent", *steps, "TTTEndEvent"]
    assert all(within and are_open for _, within, are_open in heard)


# Asynchronously


@pytest.mark.parametrize("way", ["async", "astream"])
async def test_the_loop_goes_on_and_a_cancelled_query_stops(
    index: VectorStoreIndex, tiny: Engine, way: str
) -> None:
    begun, over = threading.Event(), threading.Event()

    class Slow(SIFTCallbackHandler):
        def on_train_step(self, event: Any, control: Any) -> None:
            begun.set()

        def on_train_end(self, event: Any, control: Any) -> None:
            assert event["stopped"] == "cancelled"
            over.set()

    handler = Slow(training=TrainingConfig(steps=100_000))
    engine = made(index, tiny, way, callback_manager=CallbackManager([handler]))
    task = asyncio.create_task(ask(engine, way))
    ticks = 0
    while not begun.is_set() or ticks < 50:
        ticks += 1
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(over.wait, 20)
    assert (await ask(made(index, tiny, way), way))[0] == "Tanaka"


async def test_queries_side_by_side(index: VectorStoreIndex, tiny: Engine) -> None:
    engines = [made(index, tiny, mode=mode) for mode in MODES]
    alone = [(await ask(engine, "sync"))[0] for engine in engines]
    found = await asyncio.gather(*(ask(engine, "async") for engine in engines * 2))
    assert [text for text, _ in found] == alone * 2


# Built by hand, in other engines


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_in_as_query_engine(index: VectorStoreIndex, tiny: Engine, way: str) -> None:
    """Any engine that LlamaIndex makes, given its model, asks for no key."""
    select = SIFTPostprocessor(top_n=2, embed_model=SIFTEmbedding(device="cpu"))
    engine = index.as_query_engine(
        llm=SIFTLLM(engine=tiny),
        similarity_top_k=8,
        node_postprocessors=[select],
        response_synthesizer=TTTSynthesizer(tiny),
    )
    text, response = await ask(engine, way)
    assert text == "Tanaka"
    assert len(response.source_nodes) == 2


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_behind_a_router(index: VectorStoreIndex, tiny: Engine, way: str) -> None:
    tools = [
        QueryEngineTool.from_defaults(made(index, tiny, mode=mode), name=mode, description=about)
        for mode, about in (("train", "About pumps."), ("closed_book", "About the weather."))
    ]
    selector = EmbeddingSingleSelector.from_defaults(SIFTEmbedding(device="cpu"))
    router = RouterQueryEngine(selector, tools, llm=SIFTLLM(engine=tiny))
    text, response = await ask(router, way)
    assert text == "Tanaka"
    assert len(response.source_nodes) == 2


class TwoQuestions(BaseQuestionGenerator):
    """Stands in for a model that can write questions, which the bundled one cannot."""

    def _get_prompts(self) -> Any:
        return {}

    def _update_prompts(self, prompts: Any) -> None:
        pass

    def generate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        asked = [QUESTION, "Where is the Korgost pump?"]
        return [SubQuestion(sub_question=each, tool_name="pumps") for each in asked]

    async def agenerate(self, tools: Any, query: QueryBundle) -> list[SubQuestion]:
        return self.generate(tools, query)


@pytest.mark.parametrize("way", ["sync", "async"])
async def test_behind_sub_questions(index: VectorStoreIndex, tiny: Engine, way: str) -> None:
    """The answers to the sub-questions are the nodes that the last synthesis trains on."""
    tool = QueryEngineTool.from_defaults(made(index, tiny), name="pumps", description="Pumps.")
    engine = SubQuestionQueryEngine(
        TwoQuestions(), TTTSynthesizer(tiny), [tool], verbose=False, use_async=False
    )
    text, response = await ask(engine, way)
    said = [each.node.get_content() for each in response.source_nodes[:2]]
    assert "Tanaka" in said[0]
    assert "Oslo" in said[1]
    assert text == tiny.answer(QUESTION, said, mode="train").text


@pytest.mark.parametrize("way", ["sync", "async", "stream", "astream"])
async def test_in_a_chat_that_condenses(index: VectorStoreIndex, tiny: Engine, way: str) -> None:
    chat = CondenseQuestionChatEngine.from_defaults(
        query_engine=made(index, tiny, way),
        llm=SIFTLLM(engine=tiny, max_tokens=20),
        memory=ChatMemoryBuffer.from_defaults(token_limit=300, tokenizer_fn=tiny.token_ids),
    )
    for _ in range(2):  # the second time, the model condenses what was said
        if way == "sync":
            text = chat.chat(QUESTION).response
        elif way == "async":
            text = (await chat.achat(QUESTION)).response
        elif way == "stream":
            text = "".join(chat.stream_chat(QUESTION).response_gen)
        else:
            streamed = await chat.astream_chat(QUESTION)
            text = "".join([piece async for piece in streamed.async_response_gen()])
        assert text.strip()
    assert chat.chat_history[1].content == "Tanaka" or way in ("stream", "astream")


@pytest.mark.parametrize("way", WAYS)
async def test_in_a_chat_with_context(index: VectorStoreIndex, way: str) -> None:
    """SIFT's nodes in the system's turn. LlamaIndex keeps 500 tokens free for that engine, more
    than the bundled model has left: hence another one, with random weights."""
    config: Any = CONFIGS["llama"]()
    config.max_position_embeddings = 4096
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        auto: Any = AutoModelForCausalLM
        model = auto.from_config(config).eval()
    with Engine(model, byte_tokenizer(), max_new_tokens=40) as engine:
        chat = ContextChatEngine.from_defaults(
            retriever=SIFTRetriever(index, k=2),
            llm=SIFTLLM(engine=engine),
            memory=ChatMemoryBuffer.from_defaults(token_limit=300, tokenizer_fn=engine.token_ids),
            context_template="{context_str}",
        )
        response: Any
        if way == "sync":
            text = (response := chat.chat(QUESTION)).response
        elif way == "async":
            text = (response := await chat.achat(QUESTION)).response
        elif way == "stream":
            text = "".join((response := chat.stream_chat(QUESTION)).response_gen)
        else:
            response = await chat.astream_chat(QUESTION)
            text = "".join([piece async for piece in response.async_response_gen()])
        texts = [each.node.get_content() for each in response.source_nodes]
        assert len(texts) == 2
        prompt = "\n\n".join([*texts, QUESTION])
        wanted = engine.answer("x", mode="closed_book", prompt=prompt).text
        assert text.strip() == wanted != ""
