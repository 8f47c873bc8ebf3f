"""Write selection.json: vectors and the picks of every selector on them.

    python tests/golden/make_selection.py

Run it when a pick is meant to change, and read the difference before committing it. The vectors are
in the file too, so that a new NumPy cannot change the question together with the answer.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sift_rag.kernels import rbf
from sift_rag.rivals import dpp, mmr, nearest, uncertainty_sampling
from sift_rag.selection import Selection, sift

PATH = Path(__file__).with_name("selection.json")
CALLS: dict[str, tuple[Callable[..., Selection], dict[str, Any]]] = {
    "sift": (sift, {}),
    "sift, rbf(0.15)": (sift, {"kernel": rbf(0.15), "noise": 0.01}),
    "sift, the paper's": (sift, {"kernel": "linear", "noise": 0.01, "distinct": False}),
    "sift, linear, distinct": (sift, {"kernel": "linear", "noise": 0.1}),
    "sift, wide rbf": (sift, {"kernel": rbf(0.5), "noise": 0.01}),
    "sift, worst": (sift, {"kernel": rbf(0.15), "noise": 0.01, "combine": "worst"}),
    "sift, budget": (
        sift,
        {"kernel": rbf(0.15), "noise": 0.01, "costs": [*range(3, 27)], "budget": 60},
    ),
    "nearest": (nearest, {"kernel": rbf(0.15), "noise": 0.01}),
    "mmr": (mmr, {"kernel": rbf(0.15), "noise": 0.01}),
    "mmr 0.8": (mmr, {"kernel": rbf(0.15), "noise": 0.01, "lambda_mult": 0.8}),
    "dpp": (dpp, {"kernel": rbf(0.15), "noise": 0.01}),
    "dpp 2": (dpp, {"kernel": rbf(0.15), "noise": 0.01, "relevance_weight": 2.0}),
    "uncertainty_sampling": (uncertainty_sampling, {"kernel": rbf(0.15), "noise": 0.01}),
}


def vectors() -> tuple[list[list[float]], list[list[float]]]:
    """Two queries and 24 candidates in six clusters of near-copies, d = 6, three decimals."""
    rng = np.random.default_rng(2410_08020)
    centres = rng.normal(size=(6, 6)) + 0.5
    candidates = np.repeat(centres, 4, axis=0) + 0.15 * rng.normal(size=(24, 6))
    queries = centres[:2] + 0.7 * rng.normal(size=(2, 6))
    return queries.round(3).tolist(), candidates.round(3).tolist()


def picks(queries: list[list[float]], candidates: list[list[float]]) -> dict[str, Any]:
    """Eight picks of each call, for the first query and for both."""
    found = {}
    for name, (select, options) in CALLS.items():
        for label, query in (("one query", queries[0]), ("two queries", queries)):
            selection = select(query, candidates, 8, **options)
            found[f"{name}, {label}"] = {
                "indices": selection.indices.tolist(),
                "gains": selection.gains.tolist(),
                "uncertainty": selection.uncertainty.tolist(),
            }
    return found


if __name__ == "__main__":
    queries, candidates = vectors()
    golden = {"queries": queries, "candidates": candidates, "picks": picks(queries, candidates)}
    lines = json.dumps(golden, indent=1)
    PATH.write_text(lines + "\n", encoding="utf-8")
