"""The bundled LM and its world: what the card promises, on a small sample."""

import json
import math
from collections.abc import Iterator
from functools import cache
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import Tokenizer

from sift_rag import Engine, TrainingConfig, tiny
from sift_rag.answering import Mode
from sift_rag.loading import load
from sift_rag.tiny import world

PASSAGES = 3


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    model, tokenizer = load(tiny.FOLDER)
    with Engine(model, tokenizer, training=TrainingConfig(**tiny.TRAINING)) as engine:  # type: ignore[arg-type]
        yield engine


def accuracy(engine: Engine, mode: Mode, questions: int) -> float:
    right = 0
    for seed in range(questions):
        random = Random(seed)
        devices = world.devices(PASSAGES, seed=seed)
        told = [random.sample(world.ATTRIBUTES, 4) for _ in devices]
        passages = [
            world.passage(device, seed=random, attributes=attributes)
            for device, attributes in zip(devices, told, strict=True)
        ]
        which = random.randrange(PASSAGES)
        asked = world.question(devices[which], random.choice(told[which]), seed=random)
        right += engine.answer(asked.text, passages, mode=mode).text == asked.answer
    return right / questions


def test_a_seed_gives_the_same_devices_passages_and_questions() -> None:
    first, second = (world.devices(5, seed=3) for _ in range(2))
    assert first == second
    assert first != world.devices(5, seed=4)
    device = first[0]
    assert world.passage(device, seed=1) == world.passage(device, seed=1)
    assert world.question(device, "city", seed=1) == world.question(device, "city", seed=1)


def test_held_out_names_are_never_for_training() -> None:
    held_out, training = set(world.names("held_out")), set(world.names("train"))
    assert not held_out & training
    assert len(held_out | training) == len(world.STARTS) * len(world.ENDS)
    assert len(held_out) * 8 == len(held_out | training)
    assert {device.name for device in world.devices(50, seed=0)} <= held_out


def test_held_out_names_are_of_syllables_that_training_has() -> None:
    training = world.names("train")
    for start in world.STARTS:
        assert any(name.startswith(start) for name in training)
    for end in world.ENDS:
        assert any(name.endswith(end) for name in training)


def test_near_duplicates_tell_the_same_facts_in_other_words() -> None:
    device = world.devices(1, seed=0)[0]
    attributes = ("city", "weight", "year")
    texts = {world.passage(device, seed=seed, attributes=attributes) for seed in range(10)}
    assert len(texts) == 10
    for text in texts:
        assert all(device.facts[attribute] in text for attribute in attributes)
        assert text.startswith(f"The {device.name} {device.kind} ")


@pytest.mark.parametrize("attribute", world.ATTRIBUTES)
def test_an_attribute_has_many_values_and_several_wordings(attribute: str) -> None:
    assert len(set(world.VALUES[attribute])) >= 20
    assert len(world.TELLINGS[attribute]) >= 4
    assert len(world.QUESTIONS[attribute]) >= 2


def test_the_folder_is_small() -> None:
    sizes = [path.stat().st_size for path in tiny.FOLDER.rglob("*") if path.suffix != ".pyc"]
    assert sum(sizes) <= 8_000_000


def test_the_weights_are_about_three_million_numbers() -> None:
    with safe_open(tiny.FOLDER / "model.safetensors", "pt") as weights:
        shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    assert 2_500_000 <= sum(math.prod(shape) for shape in shapes) <= 3_500_000
    config = json.loads((tiny.FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["Lfm2ForCausalLM"]


@given(text=st.text(max_size=200).filter(lambda text: "<|end|>" not in text))
@settings(max_examples=200, deadline=None)
def test_the_tokenizer_gives_any_text_back(text: str) -> None:
    ids = tokenizer().encode(text).ids
    assert tokenizer().decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("attribute", world.ATTRIBUTES)
def test_a_value_is_a_token_a_word(attribute: str) -> None:
    for value in world.VALUES[attribute]:
        assert len(tokenizer().encode(f" {value}").ids) == len(value.split())


def test_a_name_is_a_token_a_syllable() -> None:
    lengths = [len(tokenizer().encode(f" {name}").ids) for name in world.names()]
    assert lengths.count(2) >= 0.95 * len(lengths)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(tiny.FOLDER / "tokenizer.json"))


def test_it_reads_and_does_not_know(engine: Engine) -> None:
    assert accuracy(engine, "stuff", 40) >= 0.85
    assert accuracy(engine, "closed_book", 40) <= 0.15


def test_it_learns_from_passages(engine: Engine) -> None:
    assert accuracy(engine, "train", 20) >= 0.4


def test_training_does_not_spoil_reading(engine: Engine) -> None:
    assert accuracy(engine, "both", 10) >= 0.7
