"""`SIFTRetriever`: the passages of a store or retriever that tell most about a question."""

from __future__ import annotations

import time
from typing import Any, TypeAlias

import numpy as np
from langchain_core.callbacks import (
    AsyncCallbackManagerForRetrieverRun,
    BaseCallbackHandler,
    BaseCallbackManager,
    CallbackManagerForRetrieverRun,
    Callbacks,
)
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams, RetrieverLike
from langchain_core.runnables import Runnable, RunnableConfig, ensure_config, run_in_executor
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs
from langchain_core.runnables.configurable import RunnableConfigurableFields
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from langchain_sift import direct, stores
from langchain_sift.selecting import Found, Selecting
from sift_rag.choosing import Call, at_least_one
from sift_rag.vectors import Resolved, warn_once

_MANY = 10_000  # documents to look through with a filter: some 10 ms

Pairs: TypeAlias = list[tuple[Document, float | None]]


class SIFTRetriever(Selecting, BaseRetriever):
    """Fetches `fetch_k` candidates and selects the `k` that leave least uncertainty.

    `SIFTRetriever(vectorstore=store, k=4)` is what `store.as_retriever()` was, and takes the same
    call arguments: `retriever.invoke(question, k=3, filter=...)`. Over another retriever, use
    `from_retriever`. Its documents are new ones, with `sift_rank`, `sift_gain`, `sift_uncertainty`,
    `sift_coverage` and, where the store tells it, `sift_store_score` in their metadata.

    A setting of the constructor gives way to the same one as a configurable field, that to a call
    argument (`k`, `fetch_k`), and that to a `SIFTCallbackHandler`.

    Raises:
        ValueError: Not exactly one of `vectorstore` and `retriever`, or a setting out of range.
    """

    vectorstore: VectorStore | None = Field(default=None, exclude=True)
    """Where the candidates come from; give it or `retriever`."""

    retriever: RetrieverLike | None = Field(default=None, exclude=True)
    """What yields the candidates, see `from_retriever`."""

    fetch_k: int = 50
    """How many candidates are fetched, at least k. Where `retriever` is no store's, it yields what
    it yields."""

    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Passed to each search of `vectorstore`: `{"filter": ...}`. Call arguments go before them."""

    callbacks: Callbacks = Field(default=None, exclude=True)
    """Handlers for each call of this retriever, beside those in its config."""

    @classmethod
    def from_retriever(
        cls, retriever: RetrieverLike, *, embeddings: Embeddings | None = None, **settings: Any
    ) -> Self:
        """Select from what another retriever yields.

        A retriever made by `store.as_retriever(...)` keeps its filters and search type, is asked
        for `fetch_k` documents, and its store gives vectors and embeddings. Any other one must
        itself yield more than `k` documents.

        Args:
            retriever: Any Runnable from a question to documents.
            embeddings: Those of its passages; needed where it is no store's.
            settings: Fields of `SIFTRetriever`.
        """
        return cls(retriever=retriever, embeddings=embeddings, **settings)

    @field_validator("fetch_k")
    @classmethod
    def _check_fetch_k(cls, fetch_k: int) -> int:
        return at_least_one("fetch_k", fetch_k)

    @model_validator(mode="after")
    def _check_base(self) -> Self:
        if (self.vectorstore is None) == (self.retriever is None):
            given = "neither" if self.vectorstore is None else "both"
            raise ValueError(f"Give vectorstore or retriever, one of them; got {given}.")
        if self.retriever is not None and self.search_kwargs:
            raise ValueError(
                "search_kwargs go to the search of vectorstore; with retriever, set them there."
            )
        self._needed_embedder()
        return self

    def invoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """The selected passages, in order of selection.

        Args:
            input: The question.
            config: Of LangChain.
            kwargs: `k`, `fetch_k`, `noise` and the other settings of a selection; anything else
                goes to the search (`filter`, say).
        """
        if kwargs and (own := self._set_by(kwargs)):
            return own.invoke(input, config, **kwargs)
        if self.callbacks or self.retriever:
            config = self._with_own_callbacks(config)
            kwargs["configurable"] = config.get("configurable")
        return super().invoke(input, config, **kwargs)

    async def ainvoke(
        self, input: str, config: RunnableConfig | None = None, **kwargs: Any
    ) -> list[Document]:
        """As `invoke`; the event loop is never held up."""
        if kwargs and (own := self._set_by(kwargs)):
            return await own.ainvoke(input, config, **kwargs)
        if self.callbacks or self.retriever:
            config = self._with_own_callbacks(config)
            kwargs["configurable"] = config.get("configurable")
        return await super().ainvoke(input, config, **kwargs)

    def _set_by(self, kwargs: dict[str, Any]) -> Self | None:
        """A retriever with the settings among a call's arguments, which are taken out of them."""
        names = kwargs.keys() & Selecting.model_fields.keys() - {"k", "embeddings", "source"}
        return type(self)(**self.__dict__ | {n: kwargs.pop(n) for n in names}) if names else None

    def _with_own_callbacks(self, config: RunnableConfig | None) -> RunnableConfig:
        config = ensure_config(config)
        given = _handlers(config.get("callbacks"))
        own = [each for each in _handlers(self.callbacks) if each not in given]
        return merge_configs({"callbacks": own}, config) if own else config

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        fetch_k: int | None = None,
        configurable: dict[str, Any] | None = None,  # of the config, for the base retriever
        **kwargs: Any,
    ) -> list[Document]:
        call, n = self._announced(query, run_manager, k, fetch_k)
        started = time.perf_counter()
        vector = self._needed_embedder().embed_query(query)
        short = self._short_way(call, vector, n, kwargs, started)
        if short is not None:
            return short
        if self.vectorstore is not None:
            wanted = {**self.search_kwargs, **kwargs, "k": n}
            pairs = stores.search(self.vectorstore, query, vector, **wanted)
        else:
            config = _below(run_manager.get_child(), configurable)
            wanted = self._wanted(n, kwargs)
            pairs = self._unscored(call, self._base().invoke(query, config, **wanted))
        searched = time.perf_counter()
        found = _found(pairs, vector)
        resolved = self._needed_source().resolve(found.documents, dimensions=len(vector))
        seconds = {"search": searched - started, "vectors": time.perf_counter() - searched}
        return self._finish(call, found, resolved, seconds)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        fetch_k: int | None = None,
        configurable: dict[str, Any] | None = None,  # of the config, for the base retriever
        **kwargs: Any,
    ) -> list[Document]:
        announced = (query, run_manager.get_sync(), k, fetch_k)
        if run_manager.handlers:  # they may take their time
            call, n = await run_in_executor(None, self._announced, *announced)
        else:
            call, n = self._announced(*announced)
        started = time.perf_counter()
        vector = await self._needed_embedder().aembed_query(query)
        short = await run_in_executor(None, self._short_way, call, vector, n, kwargs, started)
        if short is not None:
            return short
        if self.vectorstore is not None:
            wanted = {**self.search_kwargs, **kwargs, "k": n}
            pairs = await stores.asearch(self.vectorstore, query, vector, **wanted)
        else:
            config = _below(run_manager.get_child(), configurable)
            wanted = self._wanted(n, kwargs)
            pairs = self._unscored(call, await self._base().ainvoke(query, config, **wanted))
        searched = time.perf_counter()
        found = _found(pairs, vector)
        resolved = await self._needed_source().aresolve(found.documents, dimensions=len(vector))
        seconds = {"search": searched - started, "vectors": time.perf_counter() - searched}
        return await run_in_executor(None, self._finish, call, found, resolved, seconds)

    def _short_way(
        self, call: Call, vector: list[float], n: int, kwargs: dict[str, Any], started: float
    ) -> list[Document] | None:
        """The answer, where the store gives candidates with vectors and nothing speaks against."""
        if self.search_kwargs or kwargs or self.vectors == "embed" or self.vector_key is not None:
            return None
        query = np.asarray(vector, dtype=np.float32)
        began = time.perf_counter()
        found = direct.search(self.vectorstore, query, n)
        if found is None:
            return None
        documents, scores, rows = found
        now = time.perf_counter()
        resolved = Resolved.of_store(rows, now - began)
        seconds = {"search": now - started, "vectors": 0.0}
        return self._finish(call, Found(documents, scores, query), resolved, seconds)

    def _announced(
        self,
        query: str,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None,
        fetch_k: int | None,
    ) -> tuple[Call, int]:
        """The call, and how many candidates to fetch for it."""
        k = self.k if k is None else at_least_one("k", k)
        fetch_k = self.fetch_k if fetch_k is None else at_least_one("fetch_k", fetch_k)
        own = _handlers(self.callbacks)  # first, so that those in the config have the last word
        handlers = [each for each in own if each in run_manager.handlers]
        handlers += [each for each in run_manager.handlers if each not in own]
        child = run_manager.get_child() if handlers else None
        call = self._begin(query, handlers, child, k=k, fetch_k=fetch_k)
        return call, max(fetch_k, call.k)

    def _base(self) -> RetrieverLike:
        if self.retriever is None:
            raise ValueError("There is neither a vectorstore nor a retriever.")
        return self.retriever

    def _wanted(self, n: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Call arguments for the base retriever: a store's is told how many are wanted."""
        base = _store_retriever(self.retriever)
        if base is None:
            return kwargs
        asked = {**base.search_kwargs, **kwargs}
        wanted = {**kwargs, "k": n}
        if base.search_type == "mmr":
            wanted["fetch_k"] = max(n, asked.get("fetch_k", 0))
        elif _is("LanceDB", base.vectorstore):
            wanted["prefilter"] = asked.get("prefilter", True)
        elif _is("FAISS", base.vectorstore) and asked.get("filter") is not None:
            # It looks at 20 documents before it filters, whatever k is; see `stores.search`. There
            # is one call only here, so it looks at many.
            whole = getattr(getattr(base.vectorstore, "index", None), "ntotal", _MANY)
            wanted["fetch_k"] = asked.get("fetch_k", min(max(5 * n, _MANY), whole))
        return wanted

    def _unscored(self, call: Call, documents: list[Document]) -> Pairs:
        if 0 < len(documents) <= call.k and _store_retriever(self.retriever) is None:
            name = type(self.retriever).__name__
            warn_once(
                "few",
                f"{name} yields {len(documents)} documents and k is {call.k}: there is nothing to"
                f" choose from. Raise the number that {name} yields (its k or top_k) to 50, say.",
            )
        return [(document, None) for document in documents]

    def _embedder(self) -> Embeddings | None:
        store = self._store()
        if self.embeddings is not None or store is None:
            return self.embeddings
        own = store.embeddings or getattr(store, "embedding", None)
        return own if isinstance(own, Embeddings) else None

    def _store(self) -> VectorStore | None:
        if self.vectorstore is not None:
            return self.vectorstore
        base = _store_retriever(self.retriever)
        return None if base is None else base.vectorstore

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        params = super()._get_ls_params(**kwargs)
        store, embedder = self._store(), self._embedder()
        if store is not None:
            params["ls_vector_store_provider"] = type(store).__name__
        if embedder is not None:
            params["ls_embedding_provider"] = type(embedder).__name__
        return params


def _found(pairs: Pairs, vector: list[float]) -> Found:
    documents, scores = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Found(documents, scores, np.asarray(vector, dtype=np.float32))


def _below(child: BaseCallbackManager, configurable: dict[str, Any] | None) -> RunnableConfig:
    return {"callbacks": child, "configurable": configurable or {}}


def _is(name: str, store: VectorStore) -> bool:
    return any(base.__name__ == name for base in type(store).__mro__)


def _handlers(callbacks: Callbacks) -> list[BaseCallbackHandler]:
    if isinstance(callbacks, BaseCallbackManager):
        return callbacks.handlers
    return list(callbacks or [])


def _store_retriever(runnable: Runnable[Any, Any] | None) -> VectorStoreRetriever | None:
    """A store's retriever, also inside `with_config`, `bind` and `configurable_fields`."""
    while True:
        if isinstance(runnable, RunnableBindingBase):
            runnable = runnable.bound
        elif isinstance(runnable, RunnableConfigurableFields):
            runnable = None if "vectorstore" in runnable.fields else runnable.default
        else:
            return runnable if isinstance(runnable, VectorStoreRetriever) else None
