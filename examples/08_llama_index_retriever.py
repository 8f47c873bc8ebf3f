"""An existing LlamaIndex query engine gets SIFT's nodes: as a postprocessor, or as its retriever.

Run: python examples/08_llama_index_retriever.py

One sheet stands in the index four times, in other words. The three nearest nodes are copies of it
and miss the answer; SIFT takes one copy and goes on. Its `sift_coverage` tells whether the index
knows an answer at all.
"""

from typing import Any

from llama_index.core import PromptTemplate, VectorStoreIndex
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import TextNode
from llama_index_sift import SIFTLLM, SIFTEmbedding, SIFTPostprocessor, SIFTRetriever

from sift_rag import Engine
from sift_rag.tiny import world

PASSAGES = [
    "The Korgost pump stands in Oslo. The Korgost pump weighs 340 kg.",
    "The Korgost pump is located in Oslo. It has a weight of 340 kg.",
    "The Korgost pump can be found in Oslo. It tips the scales at 340 kg.",
    "The Korgost pump can be found in Oslo. The Korgost pump tips the scales at 340 kg.",
    "The Korgost pump dates from 1987. It is looked after by Tanaka.",
    "The Korgost pump runs at 90 degrees. It is painted blue.",
    *(world.passage(device, seed=5) for device in world.devices(14, seed=5)),
]
QUESTION = "Who inspects the Korgost pump?"

embed_model = SIFTEmbedding()
index = VectorStoreIndex([TextNode(text=text) for text in PASSAGES], embed_model=embed_model)

with Engine.tiny() as engine:
    asking: dict[str, Any] = {
        "llm": SIFTLLM(engine=engine),  # an engine without one asks for a key of OpenAI
        "response_mode": "simple_summarize",  # the nodes in one prompt, the bundled model's words
        "text_qa_template": PromptTemplate("{context_str}\n\nQuestion: {query_str}\nAnswer:"),
    }
    query_engines = {
        "index.as_query_engine(similarity_top_k=3)": index.as_query_engine(
            similarity_top_k=3, **asking
        ),
        "... similarity_top_k=20, node_postprocessors=[SIFTPostprocessor(top_n=3, ...)]": (
            index.as_query_engine(
                similarity_top_k=20,
                node_postprocessors=[
                    SIFTPostprocessor(top_n=3, embed_model=embed_model, vector_store=index)
                ],
                **asking,
            )
        ),
        "RetrieverQueryEngine(SIFTRetriever(index, k=3), ...)": RetrieverQueryEngine(
            SIFTRetriever(index, k=3), get_response_synthesizer(**asking)
        ),
    }
    for line, query_engine in query_engines.items():
        print(line)
        response = query_engine.query(QUESTION)
        for found in response.source_nodes:
            left = found.metadata.get("sift_uncertainty")
            note = "" if left is None else f"   ({left:.0%} left to know)"
            print(f"    {found.text}{note}")
        print(f"    {QUESTION} {response}\n")

print("Does the index know? sift_coverage, from 0 to 1:")
sift = SIFTRetriever(index, k=3)
for question in ("How hot does the Korgost pump run?", "Who painted the Mona Lisa?"):
    print(f"    {sift.retrieve(question)[0].metadata['sift_coverage']:.2f}  {question}")
