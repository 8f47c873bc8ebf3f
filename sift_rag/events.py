"""What is announced while a question is answered, and the control that may change or stop it.

A callback is an object with the hooks it cares about: subclass `Callback` and override some.
The order of one call is

    on_start -> on_selection -> on_train_start -> on_train_step ... -> on_train_end
             -> on_token ... -> on_answer

where `Pipeline` announces the first two and `Engine` the others (training hooks only where
something is trained). Every event is a dict of plain data (str, int, float, bool, None, lists and
dicts of them), so that it can be logged as JSON; it carries ids of documents, never their text.
"""

from collections.abc import Callable, Iterable
from typing import Any

SCHEMA = 1
"""Version of the events' layout: the value of `event["schema"]`. It changes when a key does."""

Event = dict[str, Any]


class Control:
    """What a callback may change or stop; one object lives as long as one call.

    Attributes:
        k: Number of passages to select. Read after `on_start`.
        noise: Noise (a variance) given to the selection. None leaves the selector's own default.
            Read after `on_start`.
        training: The `TrainingConfig` to train with. Read after `on_start` and again after
            `on_train_start`.
        stopped: Whether `stop` was called.
    """

    __slots__ = ("k", "noise", "stopped", "training")

    def __init__(
        self, *, k: int | None = None, noise: float | None = None, training: Any = None
    ) -> None:
        self.k = k
        self.noise = noise
        # Any, not TrainingConfig: events stand below training and must not import it.
        self.training = training
        self.stopped = False

    def stop(self) -> None:
        """End the training after the step that is running; what was learnt so far is used.

        To end the whole call instead, raise: the error reaches the caller, and the model is left
        as it was.
        """
        self.stopped = True


class Callback:
    """Hooks that do nothing. Override the ones of interest.

    Hooks run in the order in which the callbacks were given; those of the engine run on its
    worker thread, so they hold up the answer: keep them short. A hook that raises ends the call
    with that error.
    """

    def on_start(self, event: Event, control: Control) -> None:
        """Before anything is done. Keys: question, mode ("auto" where a router is to choose), k,
        fetch_k, noise."""

    def on_selection(self, event: Event, control: Control) -> None:
        """Passages were selected. Keys: id, score, gain, uncertainty (lists in order of
        selection), candidates (their number), coverage (0 to 1: do they know?), seconds, and
        where a router chose: route (mode, reason, numbers)."""

    def on_train_start(self, event: Event, control: Control) -> None:
        """Training is about to begin. Keys: config, texts."""

    def on_train_step(self, event: Event, control: Control) -> None:
        """One gradient step was taken. Keys: step (from 1), steps (planned), loss (nats a token),
        tokens, seconds."""

    def on_train_end(self, event: Event, control: Control) -> None:
        """Training ended. Keys: those of `TrainingReport`."""

    def on_token(self, event: Event, control: Control) -> None:
        """A piece of the answer was generated. Keys: text, index (from 0)."""

    def on_answer(self, event: Event, control: Control) -> None:
        """The answer is there. Keys: text, mode ("not_covered" where the model was not asked),
        timings, usage, finish_reason."""


class Configure(Callback):
    """Sets what one call selects and how it trains; the integrations' handlers are this, too.

    It keeps nothing of a call, so one may serve many at once. Subclasses that override a hook of it
    call the overridden one as well.

    Args:
        k: Passages to select. None leaves what the call says.
        noise: Of the selection. None leaves what the call says.
        training: The `TrainingConfig` to train with. None leaves what the call or engine says.
        stop_when: Asked after each training step, with its event (step, steps, loss, ...); True
            ends the training there, and what was learnt is used.

    Raises:
        ValueError: k below 1, or noise that is not above 0.
    """

    def __init__(
        self,
        *,
        k: int | None = None,
        noise: float | None = None,
        training: Any = None,
        stop_when: Callable[[Event], bool] | None = None,
    ) -> None:
        if k is not None and k < 1:
            raise ValueError(f"k is {k}; it must be at least 1.")
        if noise is not None and not noise > 0:
            raise ValueError(f"noise is {noise}; it must be above 0.")
        self.k = k
        self.noise = noise
        self.training = training
        self.stop_when = stop_when

    def on_start(self, event: Event, control: Control) -> None:
        """Set k, noise and training."""
        control.k = control.k if self.k is None else self.k
        control.noise = control.noise if self.noise is None else self.noise
        control.training = self.training or control.training

    def on_train_start(self, event: Event, control: Control) -> None:
        """Set the training, where nothing announced the start."""
        control.training = self.training or control.training

    def on_train_step(self, event: Event, control: Control) -> None:
        """Ask `stop_when`."""
        if self.stop_when and self.stop_when(event):
            control.stop()


def emit(
    callbacks: Iterable[Callback], hook: str, control: Control, payload: dict[str, Any]
) -> None:
    """Call `hook` of each callback with its own copy of the payload; the first error ends it."""
    for callback in callbacks:
        getattr(callback, hook)({"schema": SCHEMA, "event": hook, **payload}, control)
