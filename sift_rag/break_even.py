"""From where on training takes less time than stuffing, by the times that were measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sift_rag import sizes
from sift_rag.quantities import figure
from sift_rag.quantities import seconds as duration
from sift_rag.sizes import ModelSize

if TYPE_CHECKING:
    from sift_rag.comparison import Comparison
    from sift_rag.documents import Document

Floats = NDArray[np.float64]

_RESAMPLES = 1_000
_FEWEST = 5  # questions; the bootstrap of a median says nothing with fewer
_MOST = 10_000_000  # tokens of passages, up to which the break-even is looked for
_WINDOW = 1024  # of training, where the settings do not say


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEven:
    """From where on training takes less time than stuffing, for one way of each kind.

    Attributes:
        stuff: The way that stuffs.
        train: The way that trains.
        questions: Questions on the same adapter after which training has cost less time; None
            where it never does, or where the measured times do not show that it does.
        low: Lower end of the 95 % bootstrap interval of `questions`; None without these.
        high: Upper end.
        tokens: Tokens of passages beyond which one question alone is faster trained than stuffed;
            None where it never is, up to ten million, or where nothing tells.
        measured: Tokens of passages in the longest stuffed prompt: what is said beyond these is
            extrapolated.
        sentence: The same in words.
    """

    stuff: str
    train: str
    questions: int | None
    low: int | None
    high: int | None
    tokens: int | None
    measured: int
    sentence: str


def break_even(comparison: Comparison, *, size: ModelSize | None) -> tuple[BreakEven, ...]:
    """Hold the measured times of each way that trains against those of each way that stuffs.

    **Follow-up questions.** Training is paid once, as measured in the stage "train". Each question
    on the same adapter then takes the rest of the training way's total; a stuffed one its whole
    total. So retrieval and selection count on both sides, for each question, where they were paid.
    Counted are medians over the questions that both ways have, the saving being the median of the
    differences; where its bootstrap interval holds zero, no advantage is shown.

    **Context.** One question alone, of t tokens of passages: a stuffed one takes what does not
    depend on t, and reading the prompt; a trained one that too (its own passages only where it has
    them in its prompt) and training on t tokens as often as measured. Reading is a straight line
    through the measured times over the estimated FLOPs, training the mean time of a FLOP; without
    a model's size, over tokens. Beyond the longest prompt measured that is an extrapolation: it
    supposes that the model can read so much, and that the machine stays as fast.

    Args:
        comparison: A way stuffs if it has passages, trained on nothing, and read more tokens than
            the closed book did; a way trains if it trained.
        size: Of the model; None where it is not known.

    Returns:
        One for each pair whose times are known.
    """
    bare = _bare(comparison)
    stuffing = [way for way in comparison.ways if _stuffs(comparison, way, bare)]
    training = [way for way in comparison.ways if _median(comparison.tokens(way, "trained")) > 0]
    pairs = [_Pair.of(comparison, s, t, bare) for s in stuffing for t in training]
    return tuple(_found(pair, size) for pair in pairs if len(pair.total))


def _bare(comparison: Comparison) -> Floats:
    """(n,) tokens of the prompt without passages: closed book's, or of a way that only trains."""
    known = [way for way in comparison.ways if not np.isnan(comparison.tokens(way, "in")).all()]
    plain = [way for way in known if _settings(comparison, way).get("mode") == "closed_book"]
    plain += [way for way in known if _settings(comparison, way).get("mode") == "train"]
    plain += [way for way in known if _documents(comparison, way) == {()}]
    return comparison.tokens(plain[0], "in") if plain else np.zeros(len(comparison.cases))


def _settings(comparison: Comparison, way: str) -> Mapping[str, Any]:
    return comparison.settings.get("ways", {}).get(way) or {}


def _documents(comparison: Comparison, way: str) -> set[tuple[Document, ...] | None]:
    return {row.reply.documents for row in comparison.rows if row.way == way and row.reply}


def _stuffs(comparison: Comparison, way: str, bare: Floats) -> bool:
    trained = _median(comparison.tokens(way, "trained"))
    more = _median(comparison.tokens(way, "in") - bare) > 0
    has_passages = any(_documents(comparison, way))
    return has_passages and more and not trained > 0


def _median(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(np.median(known)) if len(known) else math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """The measured times of two ways, (n,) each, over the questions that both have."""

    stuff: str
    train: str
    stuffed: Floats  # seconds, the whole
    stuffed_prefill: Floats
    total: Floats  # seconds of the way that trains
    once: Floats  # seconds of its training
    prefill: Floats
    trained: Floats  # tokens
    read: Floats  # tokens in the stuffed prompt
    own: Floats  # tokens in the training way's own prompt
    bare: Floats  # tokens of a prompt without passages
    window: int
    seed: int

    @classmethod
    def of(cls, comparison: Comparison, stuff: str, train: str, bare: Floats) -> _Pair:
        columns = {
            "stuffed": comparison.seconds(stuff),
            "total": comparison.seconds(train),
            "once": comparison.seconds(train, "train"),
            "trained": comparison.tokens(train, "trained"),
            "read": comparison.tokens(stuff, "in"),
            "own": comparison.tokens(train, "in"),
            "bare": bare,
        }
        there = ~np.isnan(list(columns.values())).any(axis=0)
        columns["stuffed_prefill"] = comparison.seconds(stuff, "prefill")
        columns["prefill"] = comparison.seconds(train, "prefill")
        settings = _settings(comparison, train).get("training") or {}
        return cls(
            stuff=stuff,
            train=train,
            **{name: column[there] for name, column in columns.items()},
            window=int(settings.get("window") or _WINDOW),
            seed=int(comparison.settings.get("seed") or 0),
        )

    @property
    def passages(self) -> Floats:
        """(n,) tokens of the passages in the stuffed prompt."""
        return self.read - self.bare


class _FollowUp(NamedTuple):
    sentence: str
    questions: int | None = None
    low: int | None = None
    high: int | None = None


def _found(pair: _Pair, size: ModelSize | None) -> BreakEven:
    measured = int(pair.passages.max())
    if len(pair.total) >= _FEWEST:
        follow, (tokens, alone) = _follow_up(pair), _context(pair, size, measured)
    else:
        tokens, alone = None, f"Ask at least {_FEWEST}."
        follow = _FollowUp(f"too few questions ({len(pair.total)}) to say when training pays.")
    return BreakEven(
        stuff=pair.stuff,
        train=pair.train,
        questions=follow.questions,
        low=follow.low,
        high=follow.high,
        tokens=tokens,
        measured=measured,
        sentence=f"{pair.train} against {pair.stuff}: {follow.sentence} {alone}",
    )


def _follow_up(pair: _Pair) -> _FollowUp:
    saved = pair.stuffed - (pair.total - pair.once)  # (n,) seconds for each question
    rng, n = np.random.default_rng(pair.seed), len(saved)
    draws = [rng.integers(n, size=n) for _ in range(_RESAMPLES)]
    savings = [float(np.median(saved[draw])) for draw in draws]
    low, high = (float(end) for end in np.quantile(savings, [0.025, 0.975]))
    gain, once = float(np.median(saved)), float(np.median(pair.once))
    paid = f"training takes {duration(once)} once"
    then = "each question on the same adapter then takes"
    if high < 0:
        more = f"{duration(-gain)} longer than a stuffed one {_ends(-high, -low)}"
        return _FollowUp(f"training never pays, as {then} {more}.")
    if low <= 0:
        held = f"differs by {_signed(-gain)} from a stuffed one {_ends(-high, -low)}"
        told = f"{paid}; that it ever pays is not shown, as each question on the same adapter then"
        return _FollowUp(f"{told} {held}.")
    pays = [
        _count(float(np.median(pair.once[draw])), saving)
        for draw, saving in zip(draws, savings, strict=True)
    ]
    few, many = (int(end) for end in np.quantile(pays, [0.025, 0.975], method="inverted_cdf"))
    after = int(_count(once, gain))
    less = f"{then} {duration(gain)} less than a stuffed one {_ends(low, high)}"
    told = (
        f"{paid}; {less}, so after {after:,} of them ({few:,} to {many:,}) it has cost less time."
    )
    return _FollowUp(told, after, few, many)


def _ends(low: float, high: float) -> str:
    write = duration if low > 0 else _signed
    return f"(median; 95 % interval {write(low)} to {write(high)})"


def _count(once: float, saving: float) -> float:
    """Questions after which what was paid once is saved, and more."""
    return math.floor(once / saving) + 1 if saving > 0 else math.inf


def _signed(value: float) -> str:
    sign = "+" if value > 0 else "\u2212" if value < 0 else ""
    return sign + duration(abs(value))


def _context(pair: _Pair, size: ModelSize | None, measured: int) -> tuple[int | None, str]:
    """Where one question alone is faster trained: the last crossing of the two lines."""
    share = float(np.median((pair.own - pair.bare) / pair.passages))  # of them in its own prompt
    if share > 0.9:
        return None, "For one question alone it never is faster: it reads the passages as well."
    reading = _line(pair, size)
    if reading is None:
        return None, "For one question alone nothing is known: longer prompts took no longer."
    start, slope = reading
    passages = np.unique(np.geomspace(1, _MOST, 5_000).astype(np.int64)).astype(np.float64)
    bare = float(np.median(pair.bare))

    def read(tokens: Any) -> Any:
        return start + slope * _work(size, tokens)

    def trained(tokens: Any) -> Any:
        return _work(size, tokens, pair.window)

    pace = float(pair.once.sum() / trained(pair.trained).sum())
    epochs = float(np.median(pair.trained / pair.passages))
    stuffing = float(np.median(pair.stuffed - pair.stuffed_prefill)) + read(bare + passages)
    rest = float(np.median(pair.total - pair.once - pair.prefill))
    training = rest + read(bare + share * passages) + pace * trained(epochs * passages)
    behind = np.flatnonzero(training >= stuffing)
    if len(behind) and behind[-1] == len(passages) - 1:
        said = f"never is faster, up to {_MOST:,} tokens of passages"
        return None, f"For one question alone it {said}: training on them takes longer."
    if not len(behind):
        return 1, "For one question alone it is faster however few the passages."
    tokens = int(passages[behind[-1] + 1])
    known = f"the longest had {measured:,}"
    if tokens > measured:
        known = f"extrapolated{' far' * (tokens > 10 * measured)}, as {known}"
    said = f"beyond about {figure(tokens)} tokens of passages ({known})."
    return tokens, f"For one question alone it is faster {said}"


def _work(size: ModelSize | None, tokens: Any, window: int | None = None) -> Any:
    """FLOPs of reading, or of training in windows; tokens where the model is not known."""
    if size is None:
        return tokens
    if window is None:
        return sizes.reading(size, tokens)
    return sizes.training(size, tokens, window)


def _line(pair: _Pair, size: ModelSize | None) -> tuple[float, float] | None:
    """Seconds of an empty prompt, and for each unit of work: least squares, ends not below 0.

    None where times are not known, or the slope is within two standard errors of zero.
    """
    x = _work(size, np.concatenate([pair.read, pair.own]))
    y = np.concatenate([pair.stuffed_prefill, pair.prefill])
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    if len(x) < _FEWEST or np.ptp(x) == 0:
        return None
    away = x - x.mean()
    slope = float(away @ y / (away @ away))
    start = float(y.mean() - slope * x.mean())
    error = math.sqrt(float(((y - start - slope * x) ** 2).sum() / (len(x) - 2) / (away @ away)))
    if slope <= 2 * error:
        return None
    return (start, slope) if start >= 0 else (0.0, float(x @ y / (x @ x)))
