"""Train on the passages instead of reading them: an adapter for one question, then gone.

Run: python examples/03_train.py
"""

from sift_rag import Callback, Control, Engine
from sift_rag.events import Event

PASSAGES = [
    "The Korgost pump stands in Oslo. The Korgost pump is inspected by Tanaka.",
    "The Korgost pump is located in Oslo. It is looked after by Tanaka.",
]
QUESTION = "Who inspects the Korgost pump?"


class Losses(Callback):
    """Print the loss as it falls, and stop once the passages are known by heart."""

    def on_train_step(self, event: Event, control: Control) -> None:
        print(f"    step {event['step']:2d} of {event['steps']}: {event['loss']:.3f} nats a token")
        if event["loss"] < 0.05:
            control.stop()


with Engine.tiny() as engine:
    before = engine.answer(QUESTION, mode="closed_book")
    print(f"Closed book, before: {before.text}")
    trained = engine.answer(QUESTION, PASSAGES, mode="train", callbacks=[Losses()])
    print(f"Trained, with nothing in the prompt: {trained.text}")
    after = engine.answer(QUESTION, mode="closed_book")
    print(f"Closed book, after: {after.text} (the adapter has left no trace)")
    for mode in ("closed_book", "train"):
        score = engine.score(QUESTION, " Tanaka", PASSAGES if mode == "train" else [], mode=mode)
        print(f"{score.bits_per_byte:6.3f} bits a byte for the right answer, {mode}")
