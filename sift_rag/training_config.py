"""How to train for one question, and what came of it: settings and report, no model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from sift_rag.weighing import Weigh

Stopped = Literal[
    "completed",
    "callback",
    "cancelled",
    "time",
    "early",
    "non_finite",
    "diverged",
    "worse",
    "out_of_memory",
]
"""Why a training ended; see `TrainingReport`."""

BROKEN = ("non_finite", "diverged", "worse", "out_of_memory")
"""Ends after which the adapter would do harm."""

Fallback = Literal["stuff", "closed_book"]
"""How to answer after such an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """How the model is adapted to the selected passages.

    One gradient step is taken for each text of at most `window` tokens, in the order of selection,
    with Adam at a constant rate. The base's own dropout stays off: a few steps on what is to be
    remembered want no noise, and the same call gives the same answer.

    Attributes:
        rank: Rank of the adapter; 16 holds a handful of passages and costs a tenth of the model.
        alpha: The adapter's output is scaled by alpha / rank; twice the rank is the common choice.
        learning_rate: Adam's rate. For a model of 0.26M parameters 3e-3 was the best of four rates
            on three domains, 1e-3 the second; larger models are used to lower ones.
        epochs: Passes through the texts. Facts need several: a single pass moves little.
        steps: Number of gradient steps, whatever `epochs` says: the texts are gone through in
            order, again and again, until it is reached. None takes `epochs` whole passes.
        window: Tokens of one step at most; longer texts are cut into several. Memory grows with it.
        target_modules: The layers that get an adapter: "all-linear" (all but the output layer,
            and what peft gives no LoRA, such as Mamba's out_proj), or the ends of their names, such
            as ("q_proj", "v_proj"). Experts of a mixture are parameters in transformers 5, no
            layers: name them by peft, `peft=LoraConfig(target_parameters=["experts.gate_up_proj",
            "experts.down_proj"])`, at many times the weights and a slower step.
        max_grad_norm: Gradients are scaled down to this Euclidean norm.
        seed: Of the adapter's first weights. The process's own random state is never touched.
        max_seconds: No step is begun that would end after so long, by the longest so far; what was
            learnt until then is used. None has no limit.
        guard: How much worse the probes may be predicted after training, as a share of what they
            were before, before the adapter is not used. None does not look. Probes are the
            question's own words, ends of long passages, `beside` and `canary`.
        beside: How many of the nearest passages that a `Pipeline` found and did not select are
            probes too. For text that is to go on as the passages do, 2 found half of the harm that
            the other probes missed. None by default: facts learnt by heart make their neighbours
            less likely, and are right all the same.
        canary: Texts that the model has to go on predicting as well: probes of your own. Such as
            what it must still be able to say; of the passages' subject, as training on any text
            makes others less likely.
        fallback: How to answer where training broke or the guard undid it: "stuff" puts the
            passages into the prompt, "closed_book" leaves them out.
        early_stop: Whether the training ends when a pass through the texts makes the held-out
            slices worse; the best pass is kept. Without such slices it does nothing.
        held_out: Share of each long text that is not trained on but held out as a probe: only
            where that is 16 tokens or more, and the objective is "text", without `weigh`.
        objective: What is learnt of the passages: "text", their own words; "qa", questions on them
            too; "distill", what the base answers with them in its context; "leave_one_out", each
            after the others; or a function, see `sift_rag.objectives`.
        weigh: How much each token of a text counts: a function of the text and its n tokens, giving
            n weights, such as `sift_rag.weighing.informative`; None counts all alike.
        warm_start: Whether an adapter of the cache that saw most of the same passages is what
            training begins with, in place of a fresh one. With the bundled model that was better
            from 3 or 4 epochs on, and for what is new in the passages worse with 1 or 2; then an
            answer depends on what was asked before.
        peft: The adapter, where it is to be no plain LoRA of `rank` and `alpha`: a configuration of
            peft, or a dict with its "peft_type".

    Raises:
        ValueError: If a value is out of range.
        TypeError: If `target_modules` or `canary` is no string and no sequence of strings, or the
            objective or weigh no function.
    """

    rank: int = 16
    alpha: float = 32.0
    learning_rate: float = 1e-3
    epochs: int = 3
    steps: int | None = None
    window: int = 1024
    target_modules: str | tuple[str, ...] = "all-linear"
    max_grad_norm: float = 1.0
    seed: int = 0
    max_seconds: float | None = None
    guard: float | None = 0.05
    beside: int = 0
    canary: str | tuple[str, ...] = ()
    fallback: Fallback = "stuff"
    early_stop: bool = False
    held_out: float = 0.1
    objective: str | Callable[..., Any] = "text"
    weigh: Weigh | None = None
    warm_start: bool = False
    peft: Any = None

    def __post_init__(self) -> None:
        for name in ("rank", "epochs", "steps"):
            _check_count(name, getattr(self, name), 1)
        _check_count("window", self.window, 2)  # the second token is the first that has a loss
        for name in ("seed", "beside"):
            _check_count(name, getattr(self, name), 0)
        for name, most in (("alpha", 1e6), ("learning_rate", 1.0), ("max_grad_norm", 1e6)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value <= most:
                raise ValueError(f"{name} is {value!r}; it must be above 0 and at most {most:g}.")
        for name, low, high in (("max_seconds", 0, 1e9), ("guard", 0, 1e3), ("held_out", 0, 0.5)):
            value = getattr(self, name)
            if value is None and name != "held_out":
                continue
            if not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"{name} is {value!r}; it must be {low} to {high:g}.")
        if not (isinstance(self.objective, str) or callable(self.objective)):
            raise TypeError(f"objective is {self.objective!r}; it must be a name or a function.")
        if not (self.weigh is None or callable(self.weigh)):
            raise TypeError(f"weigh is {self.weigh!r}; it must be a function or None.")
        if self.fallback not in get_args(Fallback):
            allowed = ", ".join(get_args(Fallback))
            raise ValueError(f"fallback is {self.fallback!r}; it must be one of {allowed}.")
        object.__setattr__(self, "canary", _texts(self.canary))
        if not isinstance(self.target_modules, str):
            object.__setattr__(self, "target_modules", _names(self.target_modules))

    def plain(self) -> dict[str, Any]:
        """As data for JSON: functions by their names, a configuration of peft as a dict."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """What happened in one test-time training.

    Attributes:
        losses: Nats per predicted token of each step's text, before that step's update.
        steps: Updates made: len(losses), or less by the one whose loss or gradient ended it.
        tokens: Tokens that went through the model.
        seconds: Time of the steps, the callbacks between them left out.
        reset_seconds: Time of making the adapter and its optimizer fresh.
        stopped: "completed"; "callback" stopped it; "cancelled"; "time": `max_seconds` was over;
            "early": a pass made the held-out slices worse; "non_finite": a loss or gradient
            was NaN or infinite; "diverged": a text was predicted worse than by the
            base model, by more than a nat a token; "worse": a probe was, by more than the guard
            allows; "out_of_memory", with the shortest texts too.
        adapter_used: Whether the answer rests on the adapter. False after the last four, where it
            was cancelled, and where no step was taken.
        probes: By name, nats a token of what was not trained on, before and after; after is None
            where the training broke first.
        cache: "hit" where an adapter was there already, and this tells how it was trained then; for
            another question the guard has looked at its probes. "miss" where it was looked for;
            None where there is no cache.
        note: What went another way than asked for, in sentences; mostly empty.
        length: Tokens of the model's context that the adapter takes: none but for a prefix.
    """

    losses: tuple[float, ...]
    steps: int
    tokens: int
    seconds: float
    reset_seconds: float
    stopped: Stopped
    adapter_used: bool
    probes: dict[str, tuple[float, float | None]] = field(default_factory=dict)
    cache: Literal["hit", "miss"] | None = None
    note: str = ""
    length: int = 0

    def plain(self) -> dict[str, Any]:
        """As data for JSON."""
        probes = {name: list(measured) for name, measured in self.probes.items()}
        return asdict(self) | {"losses": list(self.losses), "probes": probes}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TrainingReport:
        """What `plain` gave, maybe through JSON.

        Raises:
            KeyError, TypeError, ValueError: It did not.
        """
        probes = {name: (before, after) for name, (before, after) in plain["probes"].items()}
        return cls(**{**plain, "losses": tuple(plain["losses"]), "probes": probes})


def _plain(value: Any) -> Any:
    if callable(value):
        return getattr(value, "__qualname__", None) or repr(type(value).__name__)
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        each = [_plain(one) for one in value]
        return sorted(each) if isinstance(value, set | frozenset) else each
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _check_count(name: str, value: object, least: int) -> None:
    if name == "steps" and value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}.")


def _texts(value: object) -> tuple[str, ...]:
    given = (value,) if isinstance(value, str) else value
    texts = tuple(given) if isinstance(given, list | tuple) else (None,)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError(f"canary is {value!r}; it must be a text or a list of texts.")
    if not all(text.strip() for text in texts):
        raise ValueError("canary holds an empty text: leave it out.")
    return texts


def _names(value: object) -> tuple[str, ...]:
    names = tuple(value) if isinstance(value, list | tuple) else ()
    if not names or not all(isinstance(name, str) for name in names):
        raise TypeError(
            f'target_modules is {value!r}; it must be "all-linear", a regular expression, or a '
            "list of names of layers."
        )
    return names
