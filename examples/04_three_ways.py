"""The same question and passages, four ways: `stuff`, `train`, `both` are one argument apart.

Run: python examples/04_three_ways.py
"""

from typing import get_args

from sift_rag import Engine, Index, Pipeline
from sift_rag.demo import corpus
from sift_rag.embeddings import minilm
from sift_rag.engine import Mode
from sift_rag.tiny import world

devices = world.devices(12, seed=4)
index = Index.build(corpus(devices, seed=4), minilm())
asked = [world.question(device, "city", seed=4) for device in devices[:4]]

with Engine.tiny() as engine:
    pipeline = Pipeline(index, engine, k=3)
    for question in asked:
        print(f"{question.text}  (right: {question.answer})")
        for mode in get_args(Mode):
            answer = pipeline.answer(question.text, mode=mode)
            print(f"    {mode:12} {answer.text:12} {answer.timings['total']:5.2f} s")
