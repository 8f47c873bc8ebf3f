"""Events: plain data, in order, and errors that get through."""

import json

import pytest

from sift_rag.events import SCHEMA, Callback, Control, Event, emit


class Recorder(Callback):
    def __init__(self) -> None:
        self.events: list[Event] = []

    def on_train_step(self, event: Event, control: Control) -> None:
        self.events.append(event)
        event["loss"] = "changed by a callback"


def test_each_callback_gets_its_own_copy_with_schema_and_name() -> None:
    first, second = Recorder(), Recorder()
    payload = {"step": 1, "loss": 2.5}
    emit([first, second], "on_train_step", Control(), payload)
    assert payload == {"step": 1, "loss": 2.5}
    assert second.events[0]["schema"] == SCHEMA
    assert second.events[0]["event"] == "on_train_step"
    assert json.loads(json.dumps(first.events)) == first.events


def test_hooks_that_are_not_overridden_do_nothing() -> None:
    control = Control(k=3)
    hooks = [name for name in vars(Callback) if name.startswith("on_")]
    for hook in hooks:
        emit([Callback()], hook, control, {})
    assert len(hooks) == 7
    assert (control.k, control.noise, control.training, control.stopped) == (3, None, None, False)


def test_an_error_in_a_callback_reaches_the_caller_and_ends_the_round() -> None:
    class Refuses(Callback):
        def on_train_step(self, event: Event, control: Control) -> None:
            raise RuntimeError("no more")

    after = Recorder()
    with pytest.raises(RuntimeError, match="no more"):
        emit([Refuses(), after], "on_train_step", Control(), {})
    assert after.events == []


def test_stop_is_seen_by_whoever_holds_the_control() -> None:
    control = Control()
    control.stop()
    assert control.stopped
