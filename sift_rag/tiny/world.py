"""The invented world of the bundled LM: devices, what passages tell of them, what is asked.

Pure Python and deterministic for a seed. A device has an invented name of two syllables, a kind
and eight attributes whose values come from closed lists. One name in eight is *held out*: the
bundled LM has never met it, so whatever it answers about such a device it has read or been
taught after its training.

    >>> from sift_rag.tiny import world
    >>> device = world.devices(1, seed=7)[0]
    >>> print(world.passage(device, seed=0))        # doctest: +SKIP
    The Korvane pump stands in Oslo. It weighs 340 kg. ...
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

STARTS = (
    "Bal Ber Bor Cal Cor Dal Del Dor Fal Fen Fir Gal Gor Hal Hel Hol Jan Jor Kal Kel Kor Lan "
    "Lor Mal Mer Mor Nal Ner Nor Pal Pel Por Ral Rin Ror Sal Sel Sor Tal Ter Tor Val Ver Vor "
    "Wal Wen Yor Zan"
).split()
ENDS = (
    "bax beck bim bry cade coss dane deth dix dorn duvo fane fex figg foy gand geth gill gost "
    "hane hix hoom jash joff vade vusk vimb voss rudd lyme mand meck miff moth nash neff nook "
    "pash peg posk quill quon sade seth tave tock vane zik"
).split()
KINDS = (
    "pump sensor crane valve drill mixer turbine scanner lift oven press camera boiler filter "
    "winch lathe router freezer kiln loom"
).split()

VALUES: dict[str, tuple[str, ...]] = {
    "city": tuple(
        (
            "Oslo Lima Cairo Paris Tokyo Quito Delhi Seoul Rome Madrid Berlin Vienna Prague "
            "Dublin Lisbon Athens Warsaw Zurich Geneva Milan Naples Turin Lyon Nice Bremen "
            "Hamburg Munich Leeds York Bath Boston Denver Dallas Austin Miami Chicago Toronto "
            "Havana Bogota Accra Lagos Nairobi Tunis Rabat Dakar Perth Sydney Osaka Kyoto Hanoi "
            "Manila Jakarta Mumbai Dhaka Kabul Tehran Ankara Sofia Riga Tallinn"
        ).split()
    ),
    "inspector": tuple(
        (
            "Weber Novak Silva Rossi Tanaka Patel Kim Nguyen Garcia Lopez Meyer Schmidt Fischer "
            "Dubois Laurent Moreau Bianchi Conti Ivanov Petrov Popov Kovac Horvat Nagy Larsen "
            "Hansen Berg Lind Dahl Virtanen Jansen Visser Smit Murphy Walsh Evans Hughes Clark "
            "Baker Turner Cooper Parker Reed Brooks Foster Hayes Chen Wang Huang Sato Suzuki "
            "Mori Singh Gupta Khan Ali Haddad Okafor Mensah Diallo"
        ).split()
    ),
    "weight": tuple(f"{n} kg" for n in range(110, 1000, 10)),
    "temperature": tuple(f"{n} degrees" for n in range(20, 100)),
    "colour": tuple(
        (
            "red blue green yellow orange purple pink brown black white grey silver gold cream "
            "violet crimson turquoise beige navy maroon"
        ).split()
    ),
    "service": tuple(
        f"{day} {month}"
        for month in (
            "January February March April May June July August September October November December"
        ).split()
        for day in range(1, 29)
    ),
    "material": tuple(
        (
            "steel copper brass bronze iron nickel titanium zinc tin lead glass rubber ceramic "
            "carbon plastic nylon granite marble oak bamboo"
        ).split()
    ),
    "year": tuple(str(n) for n in range(1950, 2020)),
}
ATTRIBUTES = tuple(VALUES)

#: How passages tell an attribute: the subject, then the sentence's rest with the value in it.
TELLINGS: dict[str, tuple[str, ...]] = {
    "city": (
        "stands in {}",
        "is located in {}",
        "was installed in {}",
        "can be found in {}",
        "works at the {} site",
    ),
    "inspector": (
        "is inspected by {}",
        "is checked by inspector {}",
        "is looked after by {}",
        "has {} as its inspector",
    ),
    "weight": ("weighs {}", "has a weight of {}", "tips the scales at {}", "is {} in weight"),
    "temperature": (
        "runs at {}",
        "operates at {}",
        "has a working temperature of {}",
        "stays at {} in use",
    ),
    "colour": ("is painted {}", "has a {} finish", "comes in {}", "carries {} paint"),
    "service": (
        "was serviced on {}",
        "had its last service on {}",
        "went through maintenance on {}",
        "was last checked over on {}",
    ),
    "material": (
        "is made of {}",
        "is built from {}",
        "has a housing of {}",
        "has a body of {}",
    ),
    "year": (
        "was built in {}",
        "dates from {}",
        "entered service in {}",
        "has been running since {}",
    ),
}

#: How an attribute is asked; the place is for the device.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "city": ("Which city is {} in?", "Where does {} stand?", "In which city can I find {}?"),
    "inspector": ("Who inspects {}?", "Who is the inspector of {}?", "Who looks after {}?"),
    "weight": ("How heavy is {}?", "What is the weight of {}?", "How much does {} weigh?"),
    "temperature": (
        "At what temperature does {} run?",
        "What is the working temperature of {}?",
        "How hot does {} run?",
    ),
    "colour": ("What colour is {}?", "In which colour is {} painted?", "Which colour has {}?"),
    "service": (
        "When was {} serviced?",
        "On which day was {} last serviced?",
        "When did {} have its last service?",
    ),
    "material": (
        "What is {} made of?",
        "Which material is {} built from?",
        "What is the material of {}?",
    ),
    "year": ("In which year was {} built?", "When was {} built?", "From which year is {}?"),
}


@dataclass(frozen=True, slots=True)
class Device:
    """An invented device: its name ("Korvane"), its kind ("pump") and its attributes' values."""

    name: str
    kind: str
    facts: Mapping[str, str]

    def __str__(self) -> str:
        return f"the {self.name} {self.kind}"


@dataclass(frozen=True, slots=True)
class Question:
    """A question on one attribute of one device, with its only right answer."""

    text: str
    answer: str
    device: Device
    attribute: str


def names(split: Literal["train", "held_out"] = "held_out") -> list[str]:
    """Every name of a split: 7 of 8 pairs of syllables are for training, the rest are held out."""
    return [
        start + end
        for i, start in enumerate(STARTS)
        for j, end in enumerate(ENDS)
        if ((i + j) % 8 == 0) == (split == "held_out")
    ]


def devices(n: int, *, seed: int, split: Literal["train", "held_out"] = "held_out") -> list[Device]:
    """`n` devices with different names and random facts."""
    random = Random(seed)
    return [device(name, random) for name in random.sample(names(split), n)]


def device(name: str, random: Random) -> Device:
    """A device of this name, its kind and facts drawn from `random`."""
    facts = {attribute: random.choice(values) for attribute, values in VALUES.items()}
    return Device(name, random.choice(KINDS), facts)


def passage(subject: Device, *, seed: int | Random, attributes: Sequence[str] = ()) -> str:
    """Tells some attributes of a device, in random order and words; by default 3 to 5 of them.

    The same device and attributes with another seed give a near-duplicate. The first sentence
    names the device, as do most others.
    """
    random = seed if isinstance(seed, Random) else Random(seed)
    chosen = list(attributes) or random.sample(ATTRIBUTES, random.randint(3, 5))
    random.shuffle(chosen)
    told = (random.choice(TELLINGS[a]).format(subject.facts[a]) for a in chosen)
    return " ".join(
        f"{'It' if i and random.random() < 0.25 else f'The {subject.name} {subject.kind}'} {rest}."
        for i, rest in enumerate(told)
    )


def question(subject: Device, attribute: str, *, seed: int | Random) -> Question:
    """Asks one attribute of a device, in random words."""
    random = seed if isinstance(seed, Random) else Random(seed)
    text = random.choice(QUESTIONS[attribute]).format(subject)
    return Question(text, subject.facts[attribute], subject, attribute)
