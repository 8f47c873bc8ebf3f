"""Which way answers better? Five ways over one corpus, paired statistics, and a report to send.

Run: python examples/10_compare.py [QUESTIONS] [REPORT.html]
"""

import sys
from random import Random

from rich.console import Console

from sift_rag import Engine, Index, compare, report
from sift_rag.demo import corpus
from sift_rag.embeddings import minilm
from sift_rag.terminal import comparison
from sift_rag.tiny import world

wanted = int(sys.argv[1]) if len(sys.argv) > 1 else 16
devices = world.devices(48, seed=4)  # that the model has never met
index = Index.build(corpus(devices, seed=4, copies=4), minilm())  # in other words each
random = Random(4)
facts = [(device, attribute) for device in devices for attribute in world.ATTRIBUTES]
asked = [world.question(*fact, seed=random) for fact in random.sample(facts, wanted)]

with Engine.tiny() as engine:
    done = compare(
        [{"question": each.text, "reference": each.answer} for each in asked],
        engine=engine,
        index=index,
        k=2,
        max_new_tokens=16,
        out=f"{sys.argv[2]}.jsonl" if sys.argv[2:] else None,  # then a killed run goes on
        progress=True,
        command=f"python examples/10_compare.py {wanted} report.html",
    )
Console().print(comparison(done))
if sys.argv[2:]:
    report.write(done, sys.argv[2])
    print("Report:", sys.argv[2])
