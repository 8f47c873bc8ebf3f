"""`SIFTRetriever`: the nodes of an index or retriever that tell most about a question."""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.base import BaseIndex
from llama_index.core.indices.vector_store.base import VectorStoreIndex
from llama_index.core.indices.vector_store.retrievers import VectorIndexRetriever
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.retrievers import QueryFusionRetriever
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import BasePydanticVectorStore
from numpy.typing import NDArray

from llama_index_sift.selecting import Selecting
from llama_index_sift.stores import Store
from llama_index_sift.vectors import VectorSource
from sift_rag.choosing import Call, Settings, approximate_tokens, at_least_one
from sift_rag.selection import Selector, Stop, sift
from sift_rag.vectors import Policy, Resolved, warn_once

_dispatcher = get_dispatcher(__name__)
Nodes: TypeAlias = list[NodeWithScore]


@dataclass(frozen=True, slots=True)
class _Ask:
    """One question on its way to the base.

    Attributes:
        call: As it was announced.
        base: A copy of the base for this call, or the base.
        own: The caller's bundle.
        bundle: The one for the base, which may write into it.
        query: The question's vectors where they are known before the search.
        heard: Texts that the base makes of the question.
        started: When, in seconds of `perf_counter`.
    """

    call: Call
    base: BaseRetriever
    own: QueryBundle
    bundle: QueryBundle
    query: NDArray[np.float32] | None
    heard: list[str]
    started: float


class SIFTRetriever(BaseRetriever):
    """Fetches `fetch_k` candidates and selects the `k` that leave least uncertainty.

    `SIFTRetriever(index, k=5)` is what `index.as_retriever(similarity_top_k=5)` was, and takes the
    same arguments: `filters=`, `vector_store_query_mode=`, ... Over a `VectorIndexRetriever`, that
    one's filters stay and it is asked for `fetch_k`. Any other retriever yields what it yields,
    which should be more than `k`. A fusion retriever's own questions count as the question's.

    Its nodes are copies, with `sift_rank`, `sift_gain`, `sift_uncertainty`, `sift_coverage` and,
    where the base tells one, `sift_store_score` in their metadata; no prompt shows these. Scores
    fall strictly in order of selection, from 1. `k`, `fetch_k` and `callback_manager` may be set at
    any time; a `SIFTCallbackHandler` in the `CallbackManager` has the last word on k and noise.
    """

    def __init__(
        self,
        index_or_retriever: BaseIndex[Any] | BaseRetriever,
        k: int = 5,
        fetch_k: int = 50,
        *,
        embed_model: BaseEmbedding | None = None,
        vector_store: Store | None = None,
        noise: float | None = None,
        select: Selector = sift,
        stop: Stop | None = None,
        budget: int | None = None,
        length_function: Callable[[str], int] = approximate_tokens,
        vectors: Policy = "auto",
        vector_key: str | None = None,
        mark: bool = True,
        source: VectorSource | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
        **search: Any,
    ) -> None:
        """Remember how to select.

        Args:
            index_or_retriever: Where candidates come from.
            k: How many nodes to select.
            fetch_k: How many candidates are fetched, at least k.
            embed_model: The one that the nodes were embedded with. None takes the index's own.
                `Settings.embed_model` is never used.
            vector_store: It, or the index over it, is asked for the nodes' vectors. None takes the
                index's own.
            noise: Noise of the selection, a variance; None leaves the selector's own.
            select: A selector of `sift_rag`, or `functools.partial` of one.
            stop: A rule of `sift_rag.stopping` that keeps the first picks only.
            budget: Tokens that the selected nodes may have together, as a prompt shows them.
            length_function: Counts the tokens of a text for `budget`.
            vectors: Where vectors may come from: "auto" for anywhere, "store" never to embed a
                node, "embed" never to ask the store.
            vector_key: Metadata key under which nodes carry their vector, if they do.
            mark: Whether the nodes' metadata tell about the selection. Set it to False for a
                retriever inside `QueryFusionRetriever`, which knows a node that several retrievers
                found by the hash of its text and metadata.
            source: Another retriever's `source`, to share what it remembers.
            callback_manager: None takes that of the base.
            object_map: Of `IndexNode`s, as in LlamaIndex; joins the index's own.
            objects: The same as a list.
            verbose: As in LlamaIndex.
            search: Passed to `index.as_retriever`; not where a retriever is given.

        Raises:
            ValueError: No model for the question, a setting out of range, or search arguments where
                they cannot be used.
            TypeError: Neither an index nor a retriever.
        """
        self.k = at_least_one("k", k)
        self.fetch_k = at_least_one("fetch_k", fetch_k)
        self._base = _base(index_or_retriever, fetch_k, search)
        manager = callback_manager or getattr(self._base, "callback_manager", None)
        super().__init__(manager, object_map=object_map, objects=objects, verbose=verbose)
        if isinstance(self._base, VectorIndexRetriever):
            embed_model = embed_model or self._base._embed_model
            vector_store = self._base._index if vector_store is None else vector_store
            # The index's own dict, if there is no other: objects may come in later.
            given, own = self.object_map, self._base.object_map
            self.object_map = {**own, **given} if given else own
        if embed_model is None:
            raise ValueError(
                f"{type(self).__name__} has no embed_model for the question; pass the one that the"
                " nodes were embedded with: embed_model=..."
            )
        place = (embed_model, vector_store, vectors, vector_key)
        self.source = (source or VectorSource(*place[:2])).like(*place)
        settings = Settings(noise, select, stop, budget, length_function)
        self._selecting = Selecting(type(self).__name__, settings, embed_model, self.source, mark)

    def _get_prompt_modules(self) -> Any:
        return {"retriever": self._base}

    def _retrieve(self, query_bundle: QueryBundle) -> Nodes:
        ask = self._begin(query_bundle)
        nodes = _searched(ask)
        searched = time.perf_counter()
        d = None if ask.query is None else ask.query.shape[-1]
        resolved = self.source.resolve([each.node for each in nodes], dimensions=d)
        return self._finish(ask, nodes, resolved, searched, time.perf_counter())

    @_dispatcher.span
    async def _aretrieve(self, query_bundle: QueryBundle) -> Nodes:
        # The question is embedded in a thread too: many models' own async methods block.
        ask = await asyncio.to_thread(self._begin, query_bundle)
        nodes = await _asearched(ask)
        searched = time.perf_counter()
        d = None if ask.query is None else ask.query.shape[-1]
        resolved = await self.source.aresolve([each.node for each in nodes], dimensions=d)
        given = (ask, nodes, resolved, searched, time.perf_counter())
        return await asyncio.to_thread(self._finish, *given)

    def _begin(self, own: QueryBundle) -> _Ask:
        k, fetch_k = at_least_one("k", self.k), at_least_one("fetch_k", self.fetch_k)
        call = self._selecting.begin(own, self.callback_manager, k=k, fetch_k=fetch_k)
        started = time.perf_counter()
        bundle, heard = replace(own), list[str]()
        base, query = self._base, None
        if isinstance(base, VectorIndexRetriever):
            base = _wide(base, max(fetch_k, call.k))
            query = self._selecting.queries(own)
            if own.embedding is None and base._vector_store.is_embedding_query:
                # As LlamaIndex joins several texts.
                bundle.embedding = np.atleast_2d(query).mean(axis=0).tolist()
        elif isinstance(base, QueryFusionRetriever):
            base = _overheard(base, heard)
        return _Ask(call, base, own, bundle, query, heard, started)

    def _finish(
        self, ask: _Ask, nodes: Nodes, resolved: Resolved, searched: float, found: float
    ) -> Nodes:
        self._warn_of_few(ask.call, len(nodes))
        query = ask.query
        if query is None:
            d = resolved.rows.shape[1] if resolved.known.any() else None
            query = np.zeros(1, dtype=np.float32)
            if nodes:
                query = self._selecting.queries(ask.own, ask.heard, dimensions=d)
        embedded = time.perf_counter() - found
        seconds = {"search": searched - ask.started + embedded, "vectors": found - searched}
        return self._selecting.finish(ask.call, nodes, query, resolved, seconds)

    def _warn_of_few(self, call: Call, n: int) -> None:
        if 0 < n <= call.k and not isinstance(self._base, VectorIndexRetriever):
            name = type(self._base).__name__
            warn_once(
                "few",
                f"{name} yields {n} nodes and k is {call.k}: there is nothing to choose from."
                f" Raise the number that {name} yields (its similarity_top_k) to 50, say.",
            )


def _base(
    given: BaseIndex[Any] | BaseRetriever, fetch_k: int, search: dict[str, Any]
) -> BaseRetriever:
    if "similarity_top_k" in search:
        raise ValueError(
            "similarity_top_k is called fetch_k here: how many candidates are fetched, of which k"
            " are selected."
        )
    if isinstance(given, BaseRetriever):
        if search:
            raise ValueError(
                f"{', '.join(search)}: such arguments go to index.as_retriever(...); with a"
                " retriever, set them there."
            )
        return given
    if isinstance(given, BaseIndex):
        few = {"similarity_top_k": fetch_k} if isinstance(given, VectorStoreIndex) else {}
        return given.as_retriever(**few, **search)
    raise TypeError(
        f"SIFTRetriever selects from an index or a retriever of LlamaIndex, got"
        f" {type(given).__name__}. For a vector store: VectorStoreIndex.from_vector_store(store,"
        " embed_model=...)"
    )


def _wide(base: VectorIndexRetriever, n: int) -> VectorIndexRetriever:
    """A copy that yields n, so that the caller's stays as it is."""
    own = copy.copy(base)
    own.similarity_top_k = n
    for name in ("_sparse_top_k", "_hybrid_top_k"):  # of hybrid queries; None follows the above
        if (set_to := getattr(own, name, None)) is not None:
            setattr(own, name, max(n, set_to))
    return own


def _overheard(base: QueryFusionRetriever, heard: list[str]) -> BaseRetriever:
    """A copy that tells the questions which its LLM makes of one."""
    own: Any = copy.copy(base)

    def keep(made: list[QueryBundle]) -> list[QueryBundle]:
        heard.extend(text for each in made for text in each.embedding_strs)
        return made

    own._get_queries = lambda question: keep(base._get_queries(question))
    if hasattr(base, "_aget_queries"):

        async def aget_queries(question: str) -> list[QueryBundle]:
            return keep(await base._aget_queries(question))

        own._aget_queries = aget_queries
    retriever: BaseRetriever = own
    return retriever


def _searched(ask: _Ask) -> Nodes:
    if isinstance(ask.base, VectorIndexRetriever):
        # Not `retrieve`: that follows every candidate that is an IndexNode to what it stands for.
        return ask.base._retrieve(ask.bundle)
    return ask.base.retrieve(ask.bundle)


async def _asearched(ask: _Ask) -> Nodes:
    """As `_searched`; where async methods are the inherited ones, which block, in a thread."""
    base = ask.base
    if isinstance(base, VectorIndexRetriever):
        if type(base._vector_store).aquery is BasePydanticVectorStore.aquery:
            return await asyncio.to_thread(_searched, ask)
        return await base._aretrieve(ask.bundle)
    if type(base)._aretrieve is BaseRetriever._aretrieve:
        return await asyncio.to_thread(_searched, ask)
    return await base.aretrieve(ask.bundle)
