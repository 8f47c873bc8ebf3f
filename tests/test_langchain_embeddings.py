"""Embeddings: LangChain's own suites on the real MiniLM weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.embeddings import Embeddings
from langchain_sift import SIFTEmbeddings
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from sift_rag.embeddings import SentenceTransformerEmbedder, minilm


@pytest.fixture(scope="module")
def embedder() -> SentenceTransformerEmbedder:
    return minilm(device="cpu")


class Suite:
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return SIFTEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"device": "cpu"}


class TestUnit(Suite, EmbeddingsUnitTests):
    pass


class TestIntegration(Suite, EmbeddingsIntegrationTests):
    pass


async def test_it_is_the_embedder(embedder: SentenceTransformerEmbedder) -> None:
    embeddings = SIFTEmbeddings(embedder)
    assert embeddings.model == "sentence-transformers/all-MiniLM-L6-v2"
    texts = ["A pump in Oslo.", "A crane in Lima."]
    rows = np.array(embeddings.embed_documents(texts))
    np.testing.assert_allclose(rows, embedder.embed(texts), atol=1e-6)
    query = embeddings.embed_query("Where is the pump?")
    assert all(type(number) is float for number in query)
    assert np.allclose(query, embedder.embed(["Where is the pump?"], kind="query")[0], atol=1e-6)
    assert await embeddings.aembed_query("Where is the pump?") == query
    assert embeddings.embed_documents([]) == []


def test_any_sentence_transformers_folder_will_do(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="holds no sentence-transformers model"):
        SIFTEmbeddings(tmp_path)
