"""The ways that `evidence.py` holds against each other, as pipelines of the library.

A trained way takes as many passages as it takes steps, one step for each pick in order of
selection, as the paper does. A pick may come again. A greedy selection of 50 begins with that of
20, so the ways of one selector at several numbers of steps are points of one curve.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from evidence_data import DATA
from numpy.typing import ArrayLike

from sift_rag import TrainingConfig
from sift_rag.candidates import Index
from sift_rag.engine import Engine
from sift_rag.pipeline import Pipeline
from sift_rag.rivals import nearest, random, uncertainty_sampling
from sift_rag.selection import Selection, sift
from sift_rag.stopping import alpha_rule

FETCH, STUFFED, HEAD = 200, 5, 20  # candidates; passages in a prompt; steps of the main table
SCALE: dict[str, Any] = {"kernel": "linear", "noise": 0.01}  # what all uncertainties are told in
RATE = 3e-3  # the best of four for a model of 0.26M parameters, see TrainingConfig
BASE = "closed_book"


def at_random(query: ArrayLike, rows: ArrayLike, k: int, **options: Any) -> Selection:
    """Candidates by chance, others for each query."""
    seed = int.from_bytes(np.asarray(query, dtype=np.float32).tobytes()[:4], "little")
    return random(query, rows, k, seed=seed, **options)


RANDOM, NEAREST, REPEATED = "random", "nearest", "nearest repeated"
PAPER, SIFT = "SIFT linear 0.01", "SIFT linear 1"
RBF, CALM = "SIFT rbf 0.1", "SIFT rbf 1"
SELECTORS: dict[str, Callable[..., Selection]] = {
    RANDOM: partial(at_random, **SCALE),
    NEAREST: partial(nearest, **SCALE),
    REPEATED: partial(nearest, distinct=False, **SCALE),
    "uncertainty sampling": partial(uncertainty_sampling, **SCALE),
    PAPER: partial(sift, distinct=False, **SCALE),
    "SIFT linear 0.1": partial(sift, kernel="linear", noise=0.1, distinct=False),
    SIFT: partial(sift, kernel="linear", noise=1.0, distinct=False),
    RBF: partial(sift, distinct=False),
    CALM: partial(sift, noise=1.0, distinct=False),
}
CURVES = (RANDOM, NEAREST, REPEATED, PAPER, SIFT)  # at every number of steps; the others at HEAD
"""Of SIFT the paper's setting, and the one that was best in results/training_selection.md."""
COPIES = (NEAREST, REPEATED, PAPER, SIFT, RBF, CALM)  # where passages repeat
ALPHA, MOST = 0.1, 50  # with this alpha the rule takes 19 steps on average, at most 50
BOTH = f"both({SIFT}) {HEAD}"
ADAPTIVE = f"train({PAPER}) alpha rule"


def trained(selector: str, steps: int) -> str:
    """The name of a trained way."""
    return f"train({selector}) {steps}"


def selectors(steps: int, level: str) -> tuple[str, ...]:
    """Those that choose what is trained on at so many steps."""
    if level == "copies":
        return COPIES
    return tuple(SELECTORS) if steps == HEAD else CURVES


def ways(engine: Engine, index: Index, steps: int, level: str) -> dict[str, Any]:
    """The trained ways at one number of steps; at `HEAD` those without training, both, and one
    with the alpha rule's own number, too."""

    def pipeline(selector: str, mode: Any, k: int, **more: Any) -> Pipeline:
        return Pipeline(
            index,
            engine,
            select=SELECTORS[selector],
            k=k,
            fetch_k=FETCH,
            mode=mode,
            training=replace(training, steps=None if more else k),
            **more,
        )

    # What was undone is then the base, which all is held against. One step for each pick.
    training = replace(engine.training, epochs=1, beside=2, fallback="closed_book")
    made: dict[str, Any] = {BASE: BASE}
    for selector in selectors(steps, level):
        made[trained(selector, steps)] = pipeline(selector, "train", steps)
    if steps == HEAD:
        made |= {f"stuff({s})": pipeline(s, "stuff", STUFFED) for s in (NEAREST, SIFT)}
        made[BOTH] = pipeline(SIFT, "both", HEAD)
        made[ADAPTIVE] = pipeline(PAPER, "train", MOST, stop=alpha_rule(ALPHA))
    return made


def engine(model: str, rate: float | None, data: Path = DATA) -> Engine:
    """The bundled model ("tiny"), "stories260K", or any by its name or folder."""
    if model == "tiny":
        made = Engine.tiny()
    else:
        known = data / "lm" / model
        folder = known if known.is_dir() else model
        training = TrainingConfig(learning_rate=RATE) if known.is_dir() else TrainingConfig()
        made = Engine.from_pretrained(folder, training=training, chat=False)
    if rate is not None:
        made.training = replace(made.training, learning_rate=rate)
    return made
