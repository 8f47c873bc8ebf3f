"""`SIFTPostprocessor`: of the nodes that were retrieved, those that tell most about a question."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CBEventType, EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle
from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from llama_index_sift.selecting import Selecting
from llama_index_sift.stores import Store
from llama_index_sift.vectors import VectorSource
from sift_rag.choosing import Call, Settings, approximate_tokens, at_least_one
from sift_rag.selection import Selector, Stop, sift
from sift_rag.vectors import Policy, Resolved

_dispatcher = get_dispatcher(__name__)
_UNWRITTEN = ("embed_model", "vector_store", "select", "stop", "length_function")


class SIFTPostprocessor(BaseNodePostprocessor):
    """Keeps `top_n` of the nodes given, those that leave least uncertainty about the question.

    For the `node_postprocessors` of any query or chat engine, whose retriever should yield many
    nodes: `index.as_query_engine(similarity_top_k=50, node_postprocessors=[SIFTPostprocessor(
    embed_model=..., vector_store=index)])`. Its nodes are copies, with `sift_rank`,
    `sift_gain`, `sift_uncertainty`, `sift_coverage` and, where the retriever tells one,
    `sift_store_score` in their metadata; no prompt shows these. Scores fall strictly in order of
    selection, from 1.

    `to_dict` leaves out what cannot be written (models, stores, functions), and `from_dict` asks
    for it: `SIFTPostprocessor.from_dict(data, embed_model=...)`.

    Raises:
        ValueError: A setting out of range.
    """

    top_n: int = 5
    """How many nodes to select; `k` elsewhere."""

    noise: float | None = None
    """Noise of the selection, a variance. Large: nearest neighbours; small: every pick tells
    something new. None leaves the selector's own."""

    select: Selector = Field(default=sift, exclude=True)
    """Which candidates are taken: a selector of `sift_rag`, or `functools.partial` of one."""

    stop: Stop | None = Field(default=None, exclude=True)
    """A rule of `sift_rag.stopping` that keeps the first picks only. None keeps all `top_n`."""

    budget: int | None = None
    """Tokens that the selected nodes may have together, as a prompt shows them. None sets no limit.
    It is never exceeded: where not even the shortest node fits, a warning says so and none is
    selected."""

    length_function: Callable[[str], int] = Field(default=approximate_tokens, exclude=True)
    """Counts the tokens of a text for `budget`: by default a quarter of its characters."""

    vectors: Policy = "auto"
    """Where nodes' vectors may come from: "auto" for anywhere, "store" never to embed one,
    "embed" never to ask the store."""

    vector_key: str | None = None
    """Metadata key under which nodes carry their vector, if they do."""

    mark: bool = True
    """Whether the nodes' metadata tell about the selection (`sift_rank`, ...)."""

    embed_model: BaseEmbedding | None = Field(default=None, exclude=True)
    """The one that the nodes were embedded with. `Settings.embed_model` is never used."""

    vector_store: Store | None = Field(default=None, exclude=True)
    """The one that the nodes come from, or the index over it: it is asked for their vectors. A
    `FaissVectorStore` knows no ids: there, give the index."""

    source: VectorSource | None = Field(default=None, exclude=True, repr=False)
    """Finds the vectors and remembers embedded ones; made from the fields above. Give one
    postprocessor's to another to share what it remembers."""

    @field_validator("top_n")
    @classmethod
    def _check_top_n(cls, top_n: int) -> int:
        return at_least_one("top_n", top_n)

    @model_validator(mode="after")
    def _check_settings(self) -> Self:
        self._selecting()
        return self

    @classmethod
    def class_name(cls) -> str:
        """Its name in traces and dicts."""
        return "SIFTPostprocessor"

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """What can be written, and under "needs" the names of what is set and cannot."""
        defaults = {name: type(self).model_fields[name].default for name in _UNWRITTEN}
        needs = [name for name, value in defaults.items() if getattr(self, name) is not value]
        return {**super().to_dict(**kwargs), "needs": needs}

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """The postprocessor that `to_dict` wrote.

        Args:
            data: Of `to_dict`.
            kwargs: Fields that it could not write, and any others to be set anew.

        Raises:
            ValueError: One that it could not write is not given.
        """
        missing = [name for name in data.get("needs", ()) if name not in kwargs]
        if missing:
            raise ValueError(
                f"{', '.join(missing)} cannot be written to a dict, and was set: give it again,"
                f" {cls.__name__}.from_dict(data, {'=..., '.join(missing)}=...)"
            )
        written = {name: value for name, value in data.items() if name != "needs"}
        return super().from_dict(written, **kwargs)

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        selecting, call = self._announced(nodes, query_bundle)
        with self._reranking(call, nodes, query_bundle) as picked:
            started = time.perf_counter()
            resolved = selecting.source.resolve([each.node for each in nodes])
            seconds = time.perf_counter() - started
            picked += self._picked(selecting, call, nodes, query_bundle, resolved, seconds)
        return picked

    @_dispatcher.span
    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        selecting, call = await asyncio.to_thread(self._announced, nodes, query_bundle)
        with self._reranking(call, nodes, query_bundle) as picked:
            started = time.perf_counter()
            resolved = await selecting.source.aresolve([each.node for each in nodes])
            seconds = time.perf_counter() - started
            # Also the question is embedded in a thread: many models' own async methods block.
            given = (selecting, call, nodes, query_bundle, resolved, seconds)
            picked += await asyncio.to_thread(self._picked, *given)
        return picked

    def _announced(
        self, nodes: list[NodeWithScore], query: QueryBundle | None
    ) -> tuple[Selecting, Call]:
        if query is None and nodes:
            raise ValueError(
                f"{type(self).__name__} got no question; give query_bundle=... or query_str=..."
            )
        selecting = self._selecting()
        manager = self.callback_manager
        return selecting, selecting.begin(query, manager, k=self.top_n, fetch_k=len(nodes))

    @contextmanager
    def _reranking(
        self, call: Call, nodes: list[NodeWithScore], query: QueryBundle | None
    ) -> Iterator[list[NodeWithScore]]:
        """Tells both event systems of the start, and of the end whatever happens."""
        picked: list[NodeWithScore] = []
        name = self.class_name()
        payload: dict[str, Any] = {
            EventPayload.NODES: nodes,
            EventPayload.MODEL_NAME: name,
            EventPayload.QUERY_STR: "" if query is None else query.query_str,
            EventPayload.TOP_K: call.k,
        }
        start = ReRankStartEvent(query=query, nodes=nodes, top_n=call.k, model_name=name)
        _dispatcher.event(start)
        try:
            with self.callback_manager.event(CBEventType.RERANKING, payload=payload) as event:
                yield picked
                event.on_end(payload={EventPayload.NODES: picked})
        finally:
            _dispatcher.event(ReRankEndEvent(nodes=picked))

    def _picked(
        self,
        selecting: Selecting,
        call: Call,
        nodes: list[NodeWithScore],
        query: QueryBundle | None,
        resolved: Resolved,
        seconds: float,
    ) -> list[NodeWithScore]:
        started = time.perf_counter()
        rows = np.zeros(1, dtype=np.float32)
        if query is not None and nodes:
            d = resolved.rows.shape[1] if resolved.known.any() else None
            rows = selecting.queries(query, dimensions=d)
        spent = {"search": time.perf_counter() - started, "vectors": seconds}
        return selecting.finish(call, nodes, rows, resolved, spent)

    def _selecting(self) -> Selecting:
        """Made for each call, so that fields may be set at any time."""
        found = (self.embed_model, self.vector_store, self.vectors, self.vector_key)
        self.source = (self.source or VectorSource(*found[:2])).like(*found)
        at_least_one("top_n", self.top_n)
        settings = Settings(self.noise, self.select, self.stop, self.budget, self.length_function)
        return Selecting(type(self).__name__, settings, self.embed_model, self.source, self.mark)
