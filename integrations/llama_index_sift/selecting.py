"""What `SIFTPostprocessor` and `SIFTRetriever` share: the call that selects."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore, QueryBundle
from numpy.typing import NDArray

from llama_index_sift.callbacks import watchers
from llama_index_sift.vectors import VectorSource
from sift_rag.choosing import Call, Choice, Pick, Settings, announce, begin, choose
from sift_rag.vectors import Resolved

LEAST = 1e-12  # a score is above 0
FALL = 1.0 - 1e-6  # from one score to the next at least, so that float32 can tell them apart


@dataclass(frozen=True, slots=True)
class Selecting:
    """How nodes are selected for a question.

    Attributes:
        owner: The class that selects, for messages.
        settings: Of the selection.
        embed_model: That which the nodes were embedded with.
        source: Finds the nodes' vectors.
        mark: Whether the nodes' metadata tell about the selection.
    """

    owner: str
    settings: Settings
    embed_model: BaseEmbedding | None
    source: VectorSource
    mark: bool

    def begin(
        self, query: QueryBundle | None, manager: CallbackManager | None, *, k: int, fetch_k: int
    ) -> Call:
        """Announce the question; a handler may change k and noise."""
        question = "" if query is None else query.query_str
        return begin(question, watchers(manager), self.settings, k=k, fetch_k=fetch_k)

    def queries(
        self, query: QueryBundle, more: Sequence[str] = (), *, dimensions: int | None = None
    ) -> NDArray[np.float32]:
        """The question's vectors: (d,), or (m, d) where it has several texts.

        The bundle's own is taken where it has one; a retriever writes the mean there, so several
        texts are embedded each. Nothing is written into the bundle.

        Args:
            query: The question.
            more: Texts of it beside the bundle's.
            dimensions: The nodes' d, if it is known. The bundle's vector is not used where it has
                another one: it is of another model.

        Raises:
            ValueError: There is nothing to embed, nothing to embed it with, or another d.
        """
        texts = [text for text in dict.fromkeys([*query.embedding_strs, *more]) if text.strip()]
        rows = self._given(query, texts, dimensions)
        if rows is None:
            model = self._needed_model(texts)
            rows = np.array([model.get_query_embedding(text) for text in texts], dtype=np.float32)
            rows = rows[0] if len(rows) == 1 else rows
        if dimensions is not None and rows.shape[-1] != dimensions:
            raise ValueError(
                f"The question's vector has {rows.shape[-1]} dimensions and the nodes' have"
                f" {dimensions}: they are of different models. Pass the one that the nodes were"
                f" embedded with: {self.owner}(embed_model=...)"
            )
        return rows

    def finish(
        self,
        call: Call,
        nodes: Sequence[NodeWithScore],
        query: NDArray[np.float32],
        resolved: Resolved,
        seconds: dict[str, float],
    ) -> list[NodeWithScore]:
        """Select, announce, and give new nodes, whose scores fall in order of selection.

        A score is the share of what was open before the first pick that was still open before this
        one: 1 for the first. Where a pick told nothing the next one's is a hair lower.
        """
        started = time.perf_counter()
        texts = (each.node.get_content(metadata_mode=MetadataMode.LLM) for each in nodes)
        choice = choose(call, query, resolved, texts)
        chosen = [nodes[pick.index] for pick in choice.picks]
        stores = [_store_score(each) for each in chosen]
        seconds = {**seconds, "select": time.perf_counter() - started}
        ids = [each.node.node_id for each in chosen]
        announce(call, choice, resolved, seconds, ids=ids, scores=stores)
        told = _told(choice, stores) if self.mark else [{} for _ in chosen]
        each = zip(chosen, told, _scores(choice.picks), strict=True)
        return [NodeWithScore(node=_copy(own.node, tells), score=s) for own, tells, s in each]

    def _given(
        self, query: QueryBundle, texts: Sequence[str], dimensions: int | None
    ) -> NDArray[np.float32] | None:
        """The bundle's own vector, unless embedding the texts is better, and possible."""
        if query.embedding is None:
            return None
        row = np.asarray(query.embedding, dtype=np.float32)
        better = len(texts) > 1 or (texts and dimensions not in (None, len(row)))
        return None if better and self.embed_model is not None else row

    def _needed_model(self, texts: Sequence[str]) -> BaseEmbedding:
        if not texts:
            raise ValueError("The question has neither a text nor an embedding to select by.")
        if self.embed_model is None:
            raise ValueError(
                f"{self.owner} has no embed_model for the question; pass the one that the nodes"
                f" were embedded with: {self.owner}(embed_model=...)"
            )
        return self.embed_model


def _scores(picks: Sequence[Pick]) -> list[float]:
    """What was open before each pick, strictly falling, in (0, 1]."""
    scores: list[float] = []
    before = [1.0, *(pick.uncertainty for pick in picks)][: len(picks)]
    for share in before:
        most = scores[-1] * FALL if scores else 1.0
        scores.append(min(max(share, LEAST), most))
    return scores


def _store_score(own: NodeWithScore) -> float | None:
    """The retriever's; where SIFT has selected before, the score is SIFT's."""
    if "sift_rank" in own.node.metadata:
        return own.node.metadata.get("sift_store_score")
    return None if own.score is None else float(own.score)


def _told(choice: Choice, stores: Sequence[float | None]) -> list[dict[str, Any]]:
    """For each pick, what its metadata are to tell."""
    told = []
    for rank, (pick, score) in enumerate(zip(choice.picks, stores, strict=True), 1):
        tells = {
            "sift_rank": rank,
            "sift_gain": pick.gain,
            "sift_uncertainty": pick.uncertainty,
            "sift_coverage": choice.coverage,
        }
        told.append(tells if score is None else {**tells, "sift_store_score": score})
    return told


def _copy(node: BaseNode, told: dict[str, Any]) -> BaseNode:
    """A copy, since the node may be the store's own; prompts and embeddings stay the same."""
    hidden = {
        field: list(dict.fromkeys([*getattr(node, field), *told]))
        for field in ("excluded_llm_metadata_keys", "excluded_embed_metadata_keys")
    }
    metadata = {**node.metadata, **told}
    relationships = dict(node.relationships)
    return node.model_copy(update={"metadata": metadata, "relationships": relationships, **hidden})
