"""No questions, no labels: how well does each way continue passages that were taken out?

The text is Python's own language reference, which comes with Python. The bundled model has never
read English, so look at the differences: bits a byte of the second half of a passage, given its
first half and what the corpus has to say about it.

Run: python examples/11_compare_no_labels.py [PASSAGES] [REPORT.html]
"""

import sys
from pydoc_data.topics import topics

from rich.console import Console

from sift_rag import Document, Engine, Index, compare, report, split
from sift_rag.embeddings import minilm
from sift_rag.holding_out import held_out
from sift_rag.terminal import comparison

TOPICS = (
    "assert async augassign booleans calls class exceptions for function global if import in "
    "integers lambda naming nonlocal raise return slicings try while with yield"
).split()

wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 6
embedder = minilm()
texts = [Document(topics[name], {"source": name}) for name in TOPICS]
index = Index.build(split(texts, tokenizer=embedder.tokenizer), embedder)

with Engine.tiny() as engine:
    cases, rest = held_out(index, wanted, length=lambda text: len(engine.token_ids(text)), most=96)
    print(f"{wanted} passages taken out, {len(rest)} left; first: {cases[0].question[:60]!r} ...")
    done = compare(
        cases,
        ["closed_book", "stuff(sift)", "train(nearest)", "train(sift)", "both(sift)"],
        engine=engine,
        index=rest,
        baseline="closed_book",
        max_new_tokens=16,
        out=f"{sys.argv[2]}.jsonl" if sys.argv[2:] else None,  # then a killed run goes on
        progress=True,
        command=f"python examples/11_compare_no_labels.py {wanted} report.html",
    )
Console().print(comparison(done))
if sys.argv[2:]:
    report.write(done, sys.argv[2])
    print("Report:", sys.argv[2])
