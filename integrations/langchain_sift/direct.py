"""The short way through a FAISS store in memory: one search of its index brings vectors too.

LangChain's own search looks up a document for each candidate, and from a document's id the way back
to its vector. Of 50 candidates 45 are not picked: their documents are never looked at here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
from langchain_core.documents import Document
from langchain_core.vectorstores import VectorStore
from numpy.typing import NDArray

from langchain_sift.stores import is_exact


class Documents(Sequence[Document]):
    """Documents of a FAISS store by the positions that its index gave, looked up when asked for."""

    def __init__(self, store: Any, positions: Sequence[int]) -> None:
        self._store = store
        self._positions = positions

    def __len__(self) -> int:
        return len(self._positions)

    @overload
    def __getitem__(self, i: int) -> Document: ...
    @overload
    def __getitem__(self, i: slice) -> Documents: ...
    def __getitem__(self, i: int | slice) -> Document | Documents:
        """Raises ValueError where the index knows a document that the store does not."""
        if isinstance(i, slice):
            return Documents(self._store, self._positions[i])
        name = self._store.index_to_docstore_id[self._positions[i]]
        found = self._store.docstore.search(name)
        if not isinstance(found, Document):
            raise ValueError(f"Could not find the document of id {name!r} in the store: {found}")
        return found


def search(
    store: VectorStore | None, vector: NDArray[np.float32], k: int
) -> tuple[Documents, list[float], NDArray[np.float32]] | None:
    """The k nearest as the store's own search without arguments finds them, and their vectors.

    Args:
        store: Any store.
        vector: Of the question, (d,).
        k: How many at most.

    Returns:
        Documents, the store's scores, and (n, d) vectors; None where the store is no FAISS of
        langchain-community whose index keeps vectors exactly, or is in no order.
    """
    whole: Any = store
    # A class derived from it may search in a way of its own.
    module, name = type(store).__module__, type(store).__qualname__
    if (module, name) != ("langchain_community.vectorstores.faiss", "FAISS"):
        return None
    index = whole.index
    if not is_exact(whole) or index.ntotal != len(whole.index_to_docstore_id):
        return None
    query = np.array([vector], dtype=np.float32)
    if len(vector) != index.d:
        return None  # its own search says what is wrong
    if whole._normalize_L2:
        sys.modules["faiss"].normalize_L2(query)  # in place, to the same last bit
    scores, positions = index.search(query, k)
    here = positions[0] >= 0  # fewer than k: the rest is -1
    found = positions[0][here]
    rows: NDArray[np.float32] = index.reconstruct_batch(found)
    return Documents(whole, found.tolist()), scores[0][here].tolist(), rows
