"""What the bundled LM is trained on: rows of tokens with a weight for the loss of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from sift_rag.tiny import world
from sift_rag.tiny.world import Device

END = "<|end|>"
#: Loss weight of all that is not an answer: most of it is easy, or chance.
PLAIN = 0.1
#: Loss weight of the second half of a repeated row.
COPIED = 0.3
#: Loss weight of a value recalled by its name.
RECALLED = 0.5
Piece = tuple[str, float]  # text, loss weight

_WORDS = Regex(r" ?\p{L}+| ?\p{N}{1,4}| ?[^\s\p{L}\p{N}]+|\s+")


def train_tokenizer(seed: int, *, vocabulary: int = 1536) -> Tokenizer:
    """Byte-level BPE in which every syllable and every value is one token.

    In its training texts a bar parts the syllables of a name, so that no merge crosses them.
    """
    words = [
        pre_tokenizers.Split(_WORDS, "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("|", "removed"), *words]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_tokenizer_texts(seed), trainer)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(words)
    return tokenizer


def _tokenizer_texts(seed: int) -> Iterator[str]:
    random = Random(seed)
    for _ in range(10_000):
        name = f"{random.choice(world.STARTS)}|{random.choice(world.ENDS)}"
        device = world.device(name, random)
        asked = world.question(device, random.choice(world.ATTRIBUTES), seed=random)
        yield f"{world.passage(device, seed=random)}\n\nQuestion: {asked.text}\nAnswer:"
    for values in world.VALUES.values():  # every value often enough to become a token
        yield from (f" {value}" for value in values for _ in range(40))


@dataclass(frozen=True, slots=True)
class Told:
    """A passage, and the attributes of the device that it tells."""

    device: Device
    attributes: tuple[str, ...]
    text: str


def tell(device: Device, random: Random, attributes: Sequence[str] = ()) -> Told:
    """Some attributes of a device in a passage."""
    chosen = tuple(attributes) or tuple(random.sample(world.ATTRIBUTES, random.randint(3, 5)))
    return Told(device, chosen, world.passage(device, seed=random, attributes=chosen))


class Examples:
    """Random training contexts on devices of the training split."""

    def __init__(self, seed: int, *, bank: int = 250) -> None:
        names = world.names("train")
        Random(0).shuffle(names)
        self.random = Random(seed)
        # The bank's devices keep their facts: they are what closed-book answers are learned from.
        self.bank = [world.device(name, Random(name)) for name in names[:bank]]
        self.use(names[bank:])

    def use(self, names: Sequence[str]) -> None:
        """Draws fresh devices from these names."""
        self.names = names
        self.by_start: dict[str, list[str]] = {}
        self.by_end: dict[str, list[str]] = {}
        for name in self.names:
            self.by_start.setdefault(name[:3], []).append(name)
            self.by_end.setdefault(name[3:], []).append(name)

    def fresh(self, n: int) -> list[Device]:
        """`n` devices with new facts; some share a syllable or the kind with the first one."""
        random = self.random
        first = world.device(random.choice(self.names), random)
        out = {first.name: first}
        while len(out) < n:
            pool = random.choice(
                (self.names, self.names, self.by_start[first.name[:3]], self.by_end[first.name[3:]])
            )
            other = world.device(random.choice(pool), random)
            if random.random() < 0.2:
                other = Device(other.name, first.kind, other.facts)
            out.setdefault(other.name, other)
        return list(out.values())

    def told(self, n: int) -> list[Told]:
        """`n` passages, some on the same device: a near-duplicate or other facts of it."""
        random = self.random
        out: list[Told] = []
        for device in self.fresh(n):
            passage = tell(device, random)
            out.append(passage)
            if random.random() < 0.15:
                again = passage.attributes if random.random() < 0.5 else ()
                out.append(tell(device, random, again))
        random.shuffle(out)
        return out[:n]

    def asked(self, passages: Sequence[Told], at_most: int) -> list[world.Question]:
        """Different questions that the passages answer, in random order."""
        told = list(
            {(p.device.name, a): (p.device, a) for p in passages for a in p.attributes}.values()
        )
        self.random.shuffle(told)
        return [world.question(device, a, seed=self.random) for device, a in told[:at_most]]

    def reading(self, n: int, at_most: int) -> list[Piece]:
        """`n` passages and questions on them."""
        passages = self.told(n)
        pieces = [("".join(f"{p.text}\n\n" for p in passages), PLAIN)]
        for asked in self.asked(passages, at_most):
            pieces += qa(asked)
        return pieces

    def recalled(self, tokenizer: Tokenizer, length: int) -> tuple[list[int], list[float]]:
        """Names, some filler words, a value; then the names again: which value was whose?

        The filler differs between the two, from none to six words and often none: a value has to
        be bound to the last name before it, wherever that stands.
        """
        random = self.random
        tokens: list[int] = []
        weights: list[float] = []
        fillers, values = _words(tokenizer)
        (colon,) = tokenizer.encode(":").ids
        while len(tokens) < length:
            names = [tokenizer.encode(f" {d.name}").ids for d in self.fresh(random.randint(2, 6))]
            pairs = [(name, random.choice(values)) for name in names]
            widest = random.choice((0, 0, 0, 1, 2, 6))
            for asked in (False, True, True):
                random.shuffle(pairs)
                for name, value in pairs:
                    words = random.choices(fillers, k=random.randint(0, widest)) + [colon] * asked
                    tokens += [*name, *words, value]
                    weights += [0.0] * (len(name) + len(words)) + [RECALLED * asked]
        return tokens[:length], weights[:length]

    def drill(self) -> list[Piece]:
        """Short passages on the same one or two attributes: only the name tells them apart."""
        attributes = self.random.sample(world.ATTRIBUTES, self.random.randint(1, 2))
        passages = [tell(d, self.random, attributes) for d in self.fresh(self.random.randint(2, 6))]
        pieces = [("".join(f"{p.text}\n\n" for p in passages), PLAIN)]
        for asked in self.asked(passages, 8):
            pieces += qa(asked)
        return pieces

    def banked(self) -> list[Piece]:
        """A passage, or a closed-book question, on a device of the bank."""
        device = self.random.choice(self.bank)
        if self.random.random() < 0.3:
            return [(tell(device, self.random).text + END, 0.5)]
        attribute = self.random.choice(world.ATTRIBUTES)
        return qa(world.question(device, attribute, seed=self.random))

    def repeated(self, vocabulary: int, length: int) -> tuple[list[int], list[float]]:
        """Random tokens, twice: the densest lesson in copying, from which reading follows."""
        half = [self.random.randrange(257, vocabulary) for _ in range(length // 2)]
        return half + half, [0.0] * len(half) + [COPIED] * len(half)


@cache
def _words(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The first tokens of the words around values, and of the values."""
    told = [t for tellings in world.TELLINGS.values() for t in tellings]
    asked = [q for questions in world.QUESTIONS.values() for q in questions]
    words = {word for text in told + asked for word in text.replace("{}", "").split()}
    values = {value.split()[0] for own in world.VALUES.values() for value in own}
    return tuple(  # type: ignore[return-value]
        sorted({tokenizer.encode(f" {word}").ids[0] for word in group}) for group in (words, values)
    )


def qa(asked: world.Question) -> list[Piece]:
    """A closed-book prompt and its answer; after passages it asks about them."""
    return [(f"Question: {asked.text}\nAnswer:", PLAIN), (f" {asked.answer}{END}", 1.0)]


def fill(tokenizer: Tokenizer, pieces: Sequence[Piece]) -> tuple[list[int], list[float]]:
    """The tokens of the pieces and the weight of each token as a target."""
    tokens: list[int] = []
    weights: list[float] = []
    for encoding, (_, weight) in zip(
        tokenizer.encode_batch([text for text, _ in pieces]), pieces, strict=True
    ):
        tokens += encoding.ids
        weights += [weight] * len(encoding.ids)
    return tokens, weights
