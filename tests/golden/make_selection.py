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
from sift_rag.rivals import mmr, nearest
from sift_rag.selection import Selection, sift

PATH = Path(__file__).with_name("selection.json")
CALLS: dict[str, tuple[Callable[..., Selection], dict[str, Any]]] = {
    "sift": (sift, {}),
    "sift, the paper's": (sift, {"kernel": "linear", "distinct": False}),
    "sift, linear, distinct": (sift, {"kernel": "linear", "noise": 0.1}),
    "sift, wide rbf": (sift, {"kernel": rbf(0.5)}),
    "nearest": (nearest, {}),
    "mmr": (mmr, {}),
    "mmr 0.8": (mmr, {"lambda_mult": 0.8}),
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
