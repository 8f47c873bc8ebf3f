"""Examples: what is read, what is predicted, how long ones are cut and slices held out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sift_rag.lessons import Example, held_out, windows


@given(
    st.lists(st.integers(0, 99), min_size=2, max_size=60),
    st.integers(1, 40),
    st.integers(2, 20),
    st.booleans(),
)
def test_cutting_predicts_each_token_once_with_its_own_weight(
    ids: list[int], start: int, size: int, weighed: bool
) -> None:
    start = min(start, len(ids) - 1)
    weights = tuple(float(i + 1) for i in range(len(ids) - start)) if weighed else None
    pieces = windows([Example(tuple(ids), start, weights)], size)
    assert all(2 <= len(piece.ids) <= size for piece in pieces)
    assert [t for piece in pieces for t in piece.ids[piece.start :]] == ids[start:]
    if weights:
        assert [w for piece in pieces for w in piece.weights or ()] == list(weights)
    first = pieces[0].ids[: pieces[0].start]
    assert list(first) == ids[start - len(first) : start]  # the nearest of what is read


def test_a_piece_in_which_nothing_counts_is_left_out() -> None:
    weights = (1.0, 0.0, 0.0, 0.0, 1.0)
    pieces = windows([Example((0, 1, 2, 3, 4, 5), 1, weights)], 3)
    assert [piece.ids for piece in pieces] == [(0, 1, 2), (4, 5)]


def test_a_distilled_example_is_never_cut() -> None:
    example = Example(tuple(range(9)), 4, teacher=(7, 8))
    assert windows([example], 3) == [example]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ids": (1,)}, "1 tokens has nothing to predict from token 1"),
        ({"ids": (1, 2), "start": 2}, "start must be 1 to 1"),
        ({"ids": (1, 2), "start": 0}, "nothing to predict from token 0"),
        ({"ids": (1, 2, 3), "weights": (1.0,)}, "predicts 2 tokens and has 1 weights"),
        ({"ids": (1, 2), "weights": (-1.0,)}, "one for each, 0 or more"),
        ({"ids": (1, 2), "weights": (float("nan"),)}, "one for each, 0 or more"),
        ({"ids": (1, 2), "weights": (0.0,)}, "All weights of an example are 0"),
    ],
)
def test_an_example_that_teaches_nothing_is_refused(
    given: dict[str, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Example(**given)  # type: ignore[arg-type]


def test_slices_are_taken_of_long_texts_only() -> None:
    long, short, example = list(range(100)), list(range(50)), Example((1, 2))
    kept, slices = held_out([long, short, example], 0.1, 8, 64)
    assert kept == [tuple(range(90)), short, example]
    assert slices == [Example(tuple(range(80, 100)), 10)]
    assert held_out([long], 0.0, 8, 64) == ([long], [])
    assert held_out([long], 0.5, 8, 9)[1] == [Example(tuple(range(82, 100)), 9)]
