"""Stopping rules: prefixes, by the gains and by the paper's rule."""

from typing import Any

import numpy as np
import pytest

from sift_rag.rivals import mmr, nearest
from sift_rag.selection import Selection, sift
from sift_rag.stopping import alpha_rule, gain_share

rng = np.random.default_rng(0)
QUERY, ROWS = rng.normal(size=8), rng.normal(size=(40, 8))


@pytest.mark.parametrize("select", [sift, nearest, mmr])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 1.0])
def test_gain_share_keeps_the_fewest_picks_that_bring_it(select: Any, share: float) -> None:
    whole = select(QUERY, ROWS, 12)
    kept = whole.until(gain_share(share))
    assert kept.gains.sum() >= share * whole.gains.sum() * (1 - 1e-12)
    assert len(kept) == 1 or kept.gains[:-1].sum() < share * whole.gains.sum()


@pytest.mark.parametrize("rule", [gain_share(0.7), alpha_rule(0.3), None])
def test_a_stopped_selection_is_the_selection_of_so_many(rule: Any) -> None:
    whole = sift(QUERY, ROWS, 12, kernel="linear", noise=0.01)
    kept = whole.until(rule)
    assert kept == sift(QUERY, ROWS, len(kept), kernel="linear", noise=0.01)
    assert kept.coverage == whole.coverage


def test_one_answer_among_strangers_is_enough_and_equals_are_all_kept() -> None:
    basis = np.eye(12)
    alone = sift(basis[0] + 0.05, np.vstack([basis[0] + 0.04, -basis[1:]]), 8)
    assert len(alone.until(gain_share(0.8))) == 1
    even = sift(np.ones(12), basis, 8)
    assert len(even.until(gain_share(0.9))) == 8


def test_alpha_rule_is_its_definition() -> None:
    for seed in range(50):
        random = np.random.default_rng(seed)
        query, rows = random.normal(size=6), random.normal(size=(30, 6))
        found = sift(query, rows, 25, kernel="linear", noise=0.01, distinct=False)
        for alpha in (0.15, 0.3, 0.5, 2.0):
            deviations = np.sqrt(found.uncertainty)
            expected = next(
                (n for n in range(1, 26) if deviations[n - 1] > 1 / (alpha * n)), len(found)
            )
            assert alpha_rule(alpha)(found) == expected


def test_alpha_rule_counts_several_queries_as_one() -> None:
    found = sift(np.stack([QUERY] * 3), ROWS, 20, kernel="linear", noise=0.01, distinct=False)
    alone = sift(QUERY, ROWS, 20, kernel="linear", noise=0.01, distinct=False)
    assert alpha_rule(0.5)(found) == alpha_rule(0.5)(alone)


def test_rules_that_keep_nothing_or_too_much_are_refused() -> None:
    found = sift(QUERY, ROWS, 4)
    for kept in (0, -1, 5):
        with pytest.raises(ValueError, match=f"keeps {kept} of 4 picks; it must keep at least 1"):
            found.until(lambda selection, kept=kept: kept)  # type: ignore[misc]


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01, float("nan")])
def test_bad_shares_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"share is .*; it must be"):
        gain_share(share)
    with pytest.raises(TypeError, match=r"alpha is '1'; it must be a number above 0"):
        alpha_rule("1")  # type: ignore[arg-type]


def test_rules_are_values() -> None:
    assert gain_share(0.5) == gain_share(0.5) != gain_share(0.6)
    assert isinstance(sift(QUERY, ROWS, 3).until(gain_share()), Selection)
