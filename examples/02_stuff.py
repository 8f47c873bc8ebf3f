"""Select passages with SIFT, put them in the prompt, answer: retrieval-augmented generation.

Run: python examples/02_stuff.py
"""

from sift_rag import Engine, Index, Pipeline, nearest, sift
from sift_rag.embeddings import minilm

PASSAGES = [
    "The Korgost pump stands in Oslo. The Korgost pump weighs 340 kg.",
    "The Korgost pump is located in Oslo. It has a weight of 340 kg.",
    "The Korgost pump can be found in Oslo. The Korgost pump tips the scales at 340 kg.",
    "The Korgost pump is inspected by Tanaka. The Korgost pump was built in 1987.",
    "The Velfane crane stands in Lima. The Velfane crane is painted blue.",
    "The Dornook kiln is made of ceramic. The Dornook kiln runs at 90 degrees.",
]
QUESTION = "Who inspects the Korgost pump?"

index = Index.build(PASSAGES, minilm())
with Engine.tiny() as engine:
    for select in (nearest, sift):
        answer = Pipeline(index, engine, select=select, k=2, mode="stuff").answer(QUESTION)
        print(f"{select.__name__} put in the prompt:")
        for document in answer.documents:
            print(f"    {document.text}")
        print(
            f"{QUESTION} {answer.text.strip()}  ({answer.usage['prompt_tokens']} prompt tokens)\n"
        )
