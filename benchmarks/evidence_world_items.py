"""What `evidence_world.py` asks: questions on devices never seen, and the ways to answer them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from tiny_evaluation import TEST, again, items
from tiny_examples import Examples, tell

from sift_rag.answering import Mode
from sift_rag.cases import Case, Reply
from sift_rag.engine import Engine
from sift_rag.foreign import Foreign
from sift_rag.replies import of_answer
from sift_rag.sizes import flops
from sift_rag.tiny import world

MIX, MOST = 0, 40  # of devices: 1 to 5, as the model's card has it; the most that are told of
OBJECTIVES = ("text", "qa", "distill", "leave_one_out")
LONGEST = 8  # tokens of an answer
SETTINGS = ("objective", "rank", "alpha", "learning_rate", "epochs", "guard")


@dataclass(frozen=True, slots=True)
class Asked:
    """One way to answer.

    Attributes:
        mode: How passages are used.
        objective: What is learnt of them, where something is.
        rank: Of the adapter, in place of the bundled model's own.
    """

    mode: Mode
    objective: str = "text"
    rank: int | None = None

    def __str__(self) -> str:
        if self.mode in ("closed_book", "stuff"):
            return self.mode
        rank = f" rank {self.rank}" if self.rank else ""
        return f"{self.mode}({self.objective}){rank}"

    def way(self, engine: Engine) -> Foreign:
        """It, for a comparison."""
        training = replace(engine.training, objective=self.objective)
        if self.rank:  # at the same scale
            alpha = training.alpha * self.rank / training.rank
            training = replace(training, rank=self.rank, alpha=alpha)

        def ask(case: Case) -> Reply:
            answer = engine.answer(
                case.question,
                case.metadata["passages"],
                mode=self.mode,
                training=training,
                max_new_tokens=LONGEST,
            )
            usage, steps = answer.usage, len(answer.training.losses) if answer.training else 0
            work = flops(
                engine.size,
                prompt=usage["prompt_tokens"],
                written=usage["completion_tokens"],
                trained=usage["training_tokens"],
                window=max(usage["training_tokens"] // max(steps, 1), 1),  # those of a step
            )
            return replace(of_answer(answer), flops=work)

        about: dict[str, Any] = {"kind": "callable", "mode": self.mode, "longest": LONGEST}
        if self.mode in ("train", "both"):  # not all settings: new ones of the library change none
            about["training"] = {name: getattr(training, name) for name in SETTINGS}
        return Foreign(ask, about)


CLOSED, STUFF = Asked("closed_book"), Asked("stuff")
TRAIN, BOTH = Asked("train"), Asked("both")
MODES = (CLOSED, STUFF, TRAIN, BOTH)
LEARNT = tuple(Asked(mode, o) for o in OBJECTIVES[1:] for mode in ("train", "both"))
WIDER = (Asked("train", rank=32), Asked("both", rank=32))  # for many passages


@dataclass(frozen=True, slots=True)
class Condition:
    """What is read for each question.

    Attributes:
        devices: That passages tell of, one of which is asked for; `MIX` has 1 to 5.
        told: How often each passage comes, in other words.
        share: Of the number of questions that is asked for.
        ways: To answer.
        apart: Whether it is asked for its row in the table only, by no claim.
    """

    devices: int
    told: int = 1
    share: float = 1.0
    ways: tuple[Asked, ...] = MODES
    apart: bool = False

    @property
    def name(self) -> str:
        """For the run file and the command line."""
        told = f"x{self.told}" if self.told > 1 else ""
        return f"{self.devices or 'mix'}{told}{'-objectives' * self.apart}"

    def __str__(self) -> str:
        plural = "s" if self.devices != 1 else ""
        told = f", each told {self.told} times" if self.told > 1 else ""
        return f"{self.devices or '1 to 5'} passage{plural}{told}"

    def cases(self, questions: int) -> list[Case]:
        """The questions, of about so many the condition's share."""
        n = max(2, round(self.share * questions))
        if self.devices == MIX:
            found = items(n, seed=TEST)
            return [_case(i, one.question, one.passages, ()) for i, one in enumerate(found)]
        return [_told(i, self.devices, self.told) for i in range(n)]


CONDITIONS: Mapping[str, Condition] = {
    condition.name: condition
    for condition in (
        Condition(MIX, share=2.0),
        Condition(1),
        Condition(3, ways=(*MODES, *LEARNT)),
        Condition(5),
        Condition(10, ways=(*MODES, *WIDER)),
        Condition(20, share=0.5, ways=(*MODES, *WIDER)),
        Condition(40, share=0.3, ways=(*MODES, *WIDER)),
        Condition(3, told=3),
        Condition(10, told=3, share=0.3),
        *(
            Condition(*shape, ways=(STUFF, TRAIN, BOTH, *LEARNT), apart=True)
            for shape in ((1, 1, 0.4), (5, 1, 0.4), (10, 1, 0.4), (20, 1, 0.2), (3, 3, 0.4))
        ),
    )
}
"""By name. Long ones have fewer questions, as they take their time."""


def _told(number: int, devices: int, times: int) -> Case:
    """A question that one device's passage answers, among those of other devices.

    The same number has the same question and the same answering passage in every condition, and
    of two conditions the longer one has all the devices of the shorter.
    """
    examples = Examples(TEST + 1 + number, bank=0)
    examples.use(world.names("held_out"))
    facts = [tell(device, examples.random) for device in examples.fresh(MOST)]
    asked = examples.asked(facts[:1], 1)[0]
    random = Random(f"{TEST} {number} {devices} {times}")
    told = [[f, *(again(f, random) for _ in range(times - 1))] for f in facts[:devices]]
    texts = [one.text for same in told for one in same]
    random.shuffle(texts)
    return _case(number, asked, texts, [one.text for one in told[0]])


def _case(number: int, asked: world.Question, passages: Sequence[str], gold: Sequence[str]) -> Case:
    return Case(
        asked.text,
        (asked.answer,),
        tuple(gold),
        metadata={"passages": list(passages)},
        id=str(number),
    )
