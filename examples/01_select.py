"""Arrays in, indices out: three ways to take 4 of 9 passages about one question.

    python examples/01_select.py

The vectors are made by hand so that the picture is easy to check: three things matter to the
question, the corpus says the first of them four times over, and it has two passages on something
else. Nothing but NumPy is needed.
"""

import numpy as np

from sift_rag import mmr, nearest, sift
from sift_rag.selection import Selector

#                      price  size  colour  other
QUESTION = np.array([0.80, 0.55, 0.35, 0.0])
PASSAGES = {
    "price, page 1": [0.97, 0.20, 0.05, 0.05],
    "price, mirrored": [0.97, 0.21, 0.05, 0.04],
    "price, old version": [0.96, 0.20, 0.06, 0.08],
    "price, translated": [0.95, 0.22, 0.04, 0.10],
    "size": [0.25, 0.95, 0.10, 0.05],
    "size, mirrored": [0.25, 0.95, 0.11, 0.06],
    "colour": [0.30, 0.15, 0.90, 0.10],
    "shipping": [0.20, 0.05, 0.00, 0.97],
    "imprint": [0.00, 0.05, 0.10, 0.99],
}
WAYS: dict[str, Selector] = {"nearest": nearest, "mmr": mmr, "sift": sift}


def main() -> None:
    """Print the picks side by side, and what is left to know after each."""
    names, candidates = list(PASSAGES), np.array(list(PASSAGES.values()))
    for way, select in WAYS.items():
        selection = select(QUESTION, candidates, k=4, kernel="linear", noise=0.01)
        print(f"{way:24}{'gain':>8}{'uncertainty':>14}")
        print(f"{'before':24}{'':>8}{selection.initial_uncertainty:14.4f}")
        for index, gain, left in zip(
            selection.indices, selection.gains, selection.uncertainty, strict=True
        ):
            print(f"  {names[index]:22}{gain:8.4f}{left:14.4f}")
        print()
    print("Uncertainty is the variance of the question that the picks do not explain, from 1 to 0.")
    print("Here it is the paper's, `kernel='linear'`; without it, sift takes its default for")
    print("retrieval, a kernel that only near copies share:")
    for index in sift(QUESTION, candidates, k=4).indices:
        print(f"  {names[index]}")


if __name__ == "__main__":
    main()
