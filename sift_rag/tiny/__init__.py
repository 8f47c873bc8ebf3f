"""The small causal LM that comes along, and the invented world it was trained on.

It is trained by `benchmarks/train_tiny.py`; its card is README.md in its folder.
"""

from pathlib import Path

#: The folder with the weights, the tokenizer and the card.
FOLDER = Path(__file__).parent

#: Keyword arguments of `TrainingConfig` that suit it, chosen on validation devices (see the card).
TRAINING: dict[str, float | int] = {
    "rank": 8,
    "alpha": 32.0,
    "learning_rate": 5e-3,
    "epochs": 6,
}
