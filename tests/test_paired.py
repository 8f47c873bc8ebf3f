"""Paired statistics: against statsmodels, their error rates simulated, planted differences."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

from sift_rag.metrics import Metric
from sift_rag.paired import Paired, compare_pairs, fewest, holm, interval

Floats = NDArray[np.float64]
EXACT = Metric(name="exact", measure=lambda case, reply: None, title="exact match", binary=True)
GRADED = Metric(name="f1", measure=lambda case, reply: None, title="F1")
LOSS = Metric(name="loss", measure=lambda case, reply: None, title="loss", higher_is_better=False)
FEW = 400  # resamples, where many experiments are simulated


def floats(values: NDArray[np.bool_]) -> Floats:
    return values.astype(np.float64)


def coins(shares: Sequence[float], n: int = 300, seed: int = 0) -> dict[str, Floats]:
    rng = np.random.default_rng(seed)
    return {f"way {i}": floats(rng.random(n) < share) for i, share in enumerate(shares)}


def grades(shifts: Sequence[float], n: int = 300, seed: int = 0) -> dict[str, Floats]:
    """Hard and easy questions, and a way's own luck."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n)
    return {f"way {i}": hard + 0.5 * rng.normal(size=n) + d for i, d in enumerate(shifts)}


def one(metric: Metric, a: Sequence[float], b: Sequence[float]) -> Paired:
    return compare_pairs(metric, {"a": np.array(a, float), "b": np.array(b, float)})[0]


def test_mcnemar_is_that_of_statsmodels() -> None:
    values = coins([0.5, 0.55, 0.6, 0.9])
    for pair in compare_pairs(EXACT, values):
        a, b = values[pair.a] == 1, values[pair.b] == 1
        table = [[sum(a & b), sum(a & ~b)], [sum(~a & b), sum(~a & ~b)]]
        assert pair.p == pytest.approx(mcnemar(table, exact=True).pvalue)
        assert (pair.better, pair.worse) == (table[1][0], table[0][1])
        assert pair.test == "exact McNemar"


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=12))
@settings(max_examples=15, deadline=None)  # statsmodels takes its time
def test_holm_is_that_of_statsmodels(p: list[float]) -> None:
    assert holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())


def test_holm_goes_over_all_pairs() -> None:
    pairs = compare_pairs(EXACT, coins([0.5, 0.6, 0.7]))
    assert [(pair.a, pair.b) for pair in pairs] == [
        ("way 0", "way 1"),
        ("way 0", "way 2"),
        ("way 1", "way 2"),
    ]
    corrected = multipletests([pair.p for pair in pairs], method="holm")[1]
    assert [pair.p_holm for pair in pairs] == pytest.approx(corrected.tolist())


@given(st.integers(1, 400), st.data())
def test_an_interval_of_zeros_and_ones_is_wilsons(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    values = np.array([1.0] * right + [0.0] * (n - right) + [np.nan])
    wanted = proportion_confint(right, n, method="wilson")
    assert interval(values, binary=True) == pytest.approx(wanted)


def test_an_interval_of_grades_is_near_students() -> None:
    values = np.random.default_rng(0).normal(size=200)
    wanted = stats.t.interval(0.95, 199, values.mean(), stats.sem(values))
    assert interval(values, binary=False) == pytest.approx(wanted, abs=0.02)
    halves = np.array([0.0, 0.5, 1.0] * 30)  # a judge that is said to be binary, and is not
    assert interval(halves, binary=True) == interval(halves, binary=False)


def test_few_sign_flips_are_all_tried() -> None:
    b = np.array([0.3, 0.1, 0.0, 0.5, -0.2, 0.4, 0.7] + [0.0] * 50)
    a = np.zeros(len(b))
    changed = b[b != 0]
    flips = np.array(np.meshgrid(*[[-1, 1]] * len(changed))).reshape(len(changed), -1).T
    wanted = (abs(flips @ changed) >= changed.sum() - 1e-12).mean()
    assert one(GRADED, a.tolist(), b.tolist()).p == pytest.approx(wanted)


def test_many_sign_flips_come_near_the_t_test() -> None:
    values = grades([0.0, 0.05, 0.1])
    for pair in compare_pairs(GRADED, values):
        wanted = stats.ttest_rel(values[pair.b], values[pair.a]).pvalue
        assert pair.p == pytest.approx(wanted, abs=0.02)
        assert pair.test == "sign-flip permutation"


@pytest.mark.parametrize("pairs", [1, 10])
def test_the_smallest_difference_is_the_power_formulas(pairs: int) -> None:
    ways = {1: 2, 10: 5}[pairs]
    values = grades([0.0] * ways)
    for pair in compare_pairs(GRADED, values, resamples=FEW):
        sd = (values[pair.b] - values[pair.a]).std(ddof=1)
        effect = TTestPower().solve_power(nobs=300, alpha=0.05 / pairs, power=0.8)
        assert pair.smallest == pytest.approx(effect * sd, rel=0.01)


@pytest.mark.parametrize("n", [25, 100, 300])
@pytest.mark.parametrize("discordant", [0.0, 0.05, 0.4])
def test_mcnemar_shows_the_smallest_difference_in_about_four_of_five_runs(
    n: int, discordant: float
) -> None:
    half = round(n * discordant / 2)
    measured = [1.0] * half + [0.0] * (n - half), [0.0] * (n - half) + [1.0] * half
    smallest = one(EXACT, *measured).smallest
    assert smallest is not None
    rng = np.random.default_rng(n)
    differ = rng.binomial(n, max(discordant, smallest), size=4000)
    up = rng.binomial(differ, (1 + min(1.0, smallest / max(discordant, smallest))) / 2)
    p = 2 * stats.binom.cdf(np.minimum(up, differ - up), differ, 0.5)
    assert 0.72 < (p < 0.05).mean() < 0.93


def test_too_few_questions_have_no_smallest_difference() -> None:
    assert (fewest(0.05), fewest(0.005)) == (6, 9)
    total = one(EXACT, [0.0] * 5, [1.0] * 5)
    assert (total.smallest, total.shown) == (None, False)
    assert one(EXACT, [0.0] * 6, [1.0] * 6).shown
    assert one(GRADED, [0.0] * 30, [1.0] * 30).smallest is None  # and here they do not vary


@given(
    st.lists(
        st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan])] * 2), min_size=0, max_size=30
    ),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_swapping_two_ways_turns_the_signs(rows: list[tuple[float, ...]], up: bool) -> None:
    a, b = np.array(rows).reshape(-1, 2).T
    metric = GRADED if up else LOSS
    first = compare_pairs(metric, {"a": a, "b": b}, resamples=FEW)[0]
    second = compare_pairs(metric, {"b": b, "a": a}, resamples=FEW)[0].swapped()
    assert (second.a, second.b, second.n) == (first.a, first.b, first.n)
    assert (second.better, second.worse) == (first.better, first.worse)
    for name in ("mean_a", "mean_b", "difference", "low", "high", "p", "p_holm", "smallest"):
        wanted = getattr(first, name)
        assert getattr(second, name) == pytest.approx(wanted, abs=1e-9, nan_ok=True), name
    assert not first.low > first.difference + 1e-9
    assert not first.high < first.difference - 1e-9
    assert 0.0 < first.p <= first.p_holm <= 1.0


@given(st.permutations(list(range(40))))
@settings(max_examples=10, deadline=None)
def test_the_order_of_questions_means_nothing(order: list[int]) -> None:
    for metric, values in ((EXACT, coins([0.4, 0.7], 40)), (GRADED, grades([0, 0.2], 40))):
        before = compare_pairs(metric, values)[0]
        mixed = {way: column[order] for way, column in values.items()}
        after = compare_pairs(metric, mixed)[0]
        assert after.difference == pytest.approx(before.difference)
        assert (after.better, after.worse) == (before.better, before.worse)
        assert after.smallest == pytest.approx(before.smallest)
        assert after.p == pytest.approx(before.p, abs=0.06)
        width = before.high - before.low
        assert (after.low, after.high) == pytest.approx((before.low, before.high), abs=0.1 * width)


def test_a_missing_value_leaves_its_pairs_only() -> None:
    values = grades([0.0, 0.1, 0.2], 50)
    whole = compare_pairs(GRADED, values)
    values["way 2"][:20] = np.nan
    pairs = compare_pairs(GRADED, values)
    assert [pair.n for pair in pairs] == [50, 30, 30]
    assert (pairs[0].difference, pairs[0].p) == (whole[0].difference, whole[0].p)
    cut = {way: column[20:] for way, column in values.items()}
    assert pairs[1].difference == compare_pairs(GRADED, cut)[1].difference


def test_the_metrics_direction_says_what_is_better() -> None:
    a, b = [1.0, 2.0, 3.0], [0.5, 1.0, 4.0]
    assert (one(GRADED, a, b).better, one(GRADED, a, b).worse) == (1, 2)
    assert (one(LOSS, a, b).better, one(LOSS, a, b).worse) == (2, 1)
    assert one(LOSS, a, b).difference == pytest.approx(-1 / 6)


@pytest.mark.parametrize("n", [1, 2])
def test_hardly_any_question_gives_the_point(n: int) -> None:
    pair = one(GRADED, [0.0] * n, list(range(1, n + 1)))
    assert pair.low == pair.high == pair.difference == (n + 1) / 2
    assert pair.p == 2 / 2**n
    assert pair.smallest is None


def test_no_question_and_no_difference_show_nothing() -> None:
    nothing = one(EXACT, [math.nan, 1.0], [0.0, math.nan])
    assert nothing.n == 0
    assert all(math.isnan(x) for x in (nothing.mean_a, nothing.difference, nothing.low))
    assert (nothing.p, nothing.p_holm, nothing.smallest, nothing.shown) == (1.0, 1.0, None, False)
    same = one(GRADED, [0.3] * 9, [0.3] * 9)
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    assert all(math.isnan(end) for end in interval(np.array([np.nan]), binary=True))
    assert compare_pairs(EXACT, {"alone": np.ones(3)}) == ()


def test_differences_equal_but_for_rounding_have_an_interval() -> None:
    a = np.linspace(0.1, 0.9, 30)
    pair = one(GRADED, a.tolist(), (a + 0.1).tolist())
    assert (pair.low, pair.high) == pytest.approx((0.1, 0.1))


def test_no_p_is_zero() -> None:
    assert 0.0 < one(EXACT, [0.0] * 3000, [1.0] * 3000).p < 1e-300
    assert one(GRADED, [0.0] * 3000, [0.5] * 3000).p == pytest.approx(2 / 10_001)


def test_many_pairs_leave_a_difference_to_be_shown() -> None:
    """Holm over 300 pairs: 10,000 flips alone could never come below 0.05 / 300."""
    rng = np.random.default_rng(0)
    values = {f"way {i}": (i == 0) * 2.0 + rng.normal(size=40) for i in range(25)}
    pairs = compare_pairs(GRADED, values, resamples=100)
    assert all(pair.shown == (pair.a == "way 0") for pair in pairs)


def test_the_same_seed_gives_the_same_result_and_no_global_state_moves() -> None:
    before = np.random.get_state()[1]  # type: ignore[index]
    values = grades([0.0, 0.1])
    assert compare_pairs(GRADED, values, seed=3) == compare_pairs(GRADED, values, seed=3)
    assert compare_pairs(GRADED, values, seed=3) != compare_pairs(GRADED, values, seed=4)
    assert interval(values["way 0"], binary=False) == interval(values["way 0"], binary=False)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="different numbers of questions"):
        one(GRADED, [1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="Way 'b' has an infinite value in metric 'loss'"):
        one(LOSS, [1.0], [math.inf])


def test_grades_of_a_metric_said_to_be_binary_take_the_other_test() -> None:
    assert one(EXACT, [0.0, 0.5], [1.0, 1.0]).test == "sign-flip permutation"


@pytest.mark.parametrize("planted", [0.10, 0.0])
def test_a_planted_difference_is_found_and_a_planted_non_difference_is_not(planted: float) -> None:
    rng = np.random.default_rng(5)
    hard = rng.random(300)
    values = {
        f"way {i}": floats((hard < 0.8 + planted * (i == 3)) ^ (rng.random(300) < 0.04))
        for i in range(4)
    }
    shown = {(pair.a, pair.b) for pair in compare_pairs(EXACT, values) if pair.shown}
    assert shown == ({(f"way {i}", "way 3") for i in range(3)} if planted else set())
    for pair in compare_pairs(EXACT, values):
        if planted and pair.b == "way 3":
            assert 0.0 < pair.low < planted < pair.high


# Of 300 experiments with an error rate of 5 %, more than 30 go wrong with a probability of 5e-4;
# the tests' rates are lower (McNemar is conservative, so is Holm), and more than 32 is 1e-4.
EXPERIMENTS = 300
MOST = int(stats.binom.isf(1e-4, EXPERIMENTS, 0.05))


@pytest.mark.parametrize("metric", [EXACT, GRADED], ids=lambda metric: metric.name)
def test_where_nothing_differs_something_is_shown_in_at_most_one_run_of_twenty(
    metric: Metric,
) -> None:
    """Five ways, ten pairs, Holm; and one pair by itself, where the rate is not far below 5 %."""
    family = alone = 0
    for seed in range(EXPERIMENTS):
        draw = coins([0.6] * 5, 60, seed) if metric.binary else grades([0.0] * 5, 60, seed)
        pairs = compare_pairs(metric, draw, seed=seed, resamples=FEW)
        family += any(pair.shown for pair in pairs)
        alone += pairs[0].p < 0.05
    assert family <= MOST
    assert 2 <= alone <= MOST


@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_holds_the_truth_in_about_95_of_100_runs(skewed: bool) -> None:
    rng = np.random.default_rng(11)
    held = 0
    for seed in range(EXPERIMENTS):
        d = rng.exponential(size=100) if skewed else rng.normal(1.0, size=100)
        pair = compare_pairs(GRADED, {"a": np.zeros(100), "b": d}, seed=seed, resamples=1000)[0]
        held += pair.low <= 1.0 <= pair.high
    assert stats.binom.ppf(1e-4, EXPERIMENTS, 0.93) <= held <= 298


def test_the_interval_of_shares_holds_the_truth_too() -> None:
    """Ways that are right on 80 and 90 of 100 questions, the hard ones being hard for both."""
    rng = np.random.default_rng(12)
    held = 0
    for seed in range(EXPERIMENTS):
        hard = rng.random(150)
        a, b = (hard < 0.8) ^ (rng.random(150) < 0.05), (hard < 0.9) ^ (rng.random(150) < 0.05)
        pair = compare_pairs(EXACT, {"a": floats(a), "b": floats(b)}, seed=seed, resamples=1000)[0]
        held += pair.low <= 0.09 <= pair.high  # 0.1 less the tenth that the luck turns back
    assert held >= stats.binom.ppf(1e-4, EXPERIMENTS, 0.93)
