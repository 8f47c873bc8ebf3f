"""Causal language models: continue a prompt piece by piece, score a text."""

import inspect
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from jinja2 import TemplateError
from torch.nn import functional as F
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer

from sift_rag.loading import check_causal, context_limit
from sift_rag.sizes import ModelSize

FinishReason = Literal["stop", "length", "cancelled"]
Message: TypeAlias = Mapping[str, str]
"""One turn of a chat: its role ("system", "user" or "assistant") and its content."""


@dataclass(frozen=True)
class LanguageModel:
    """A causal model and its tokenizer: texts to token ids in the way that this model wants them.

    Attributes:
        model: The model.
        tokenizer: Its tokenizer.
        chat: Whether prompts go through the tokenizer's chat template, where it has one.
        context: Tokens that the model can see.
        eos: Tokens that end an answer.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat: bool = True
    context: int = field(init=False)
    eos: tuple[int, ...] = field(init=False)
    _before: tuple[int, ...] = field(init=False, repr=False)
    _after: tuple[int, ...] = field(init=False, repr=False)
    _special: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_causal(self.model.config, self.model.config.name_or_path or type(self.model))
        object.__setattr__(self, "context", context_limit(self.model.config, self.tokenizer))
        object.__setattr__(self, "eos", _eos(self.model, self.tokenizer))
        object.__setattr__(self, "_special", _special(self.tokenizer))
        # What the tokenizer puts around a text (BOS, maybe EOS), found by asking it.
        plain, whole = self._encode("a"), self._encode("a", add_special_tokens=True)
        start = next(i for i in range(len(whole)) if whole[i : i + len(plain)] == plain)
        object.__setattr__(self, "_before", tuple(whole[:start]))
        object.__setattr__(self, "_after", tuple(whole[start + len(plain) :]))

    def prompt(self, said: str | Sequence[Message]) -> list[int]:
        """Token ids of a prompt: BOS where the tokenizer adds one, never an EOS.

        Text is one turn of the user. Without a chat template, the contents of several turns follow
        each other, a blank line between two, and text is taken word for word. Turns are `plain`.

        Raises:
            ValueError: The chat template refuses the roles or their order.
        """
        if self.chat and self.tokenizer.chat_template:
            messages = [{"role": "user", "content": said}] if isinstance(said, str) else said
            return self._templated(
                [{**message, "content": self.plain(message["content"])} for message in messages]
            )
        turns = [] if isinstance(said, str) else [self.plain(turn["content"]) for turn in said]
        text = said if isinstance(said, str) else "\n\n".join(turns)
        return [*self._before, *self._encode(text)]

    def plain(self, text: str) -> str:
        """The text with a space inside each of the model's special tokens.

        A passage that holds "<|im_end|>" would otherwise end the turn that it stands in, and say
        the rest in another's name.
        """
        return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def size(self) -> ModelSize:
        """How large the model is; weights that are packed count as what they stand for."""
        config = self.model.config.get_text_config()
        seen, table = 0, self.model.get_input_embeddings()
        for parameter in self.model.parameters():
            seen += parameter.numel()
        for layer in self.model.modules():
            seen += _packed(layer)
        if not config.tie_word_embeddings and isinstance(table.weight, torch.Tensor):
            seen -= table.weight.numel()  # looked up, not multiplied
        return ModelSize(seen, int(config.num_hidden_layers), int(config.hidden_size))

    def _templated(self, messages: list[dict[str, str]]) -> list[int]:
        try:
            return list(
                self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False
                )
            )
        except TemplateError as error:
            roles = ", ".join(message["role"] for message in messages)
            raise ValueError(
                f"This model's chat template does not take these turns ({roles}): {error}. Put "
                "what the system says into the user's turn, or pass chat=False to the Engine."
            ) from error

    def text(self, text: str, *, end: bool = True) -> list[int]:
        """Token ids of a text to train on: BOS where the tokenizer adds one, and always an EOS,
        so that the end is learnt too; not so where the text is one that goes on."""
        after = (self._after or self.eos[:1]) if end else ()
        return [*self._before, *self._encode(text), *after]

    def continuation(self, text: str) -> list[int]:
        """Token ids of a text that follows a prompt, tokenised by itself.

        A space goes before it, as between "Answer:" and what a model writes after it; but not
        after a chat template, which ends in a new line or a token of its own, nor with a
        SentencePiece-like tokenizer, which puts that space itself.
        """
        ids = self._encode(text)
        first = self.tokenizer.convert_ids_to_tokens(ids[:1])
        if (self.chat and self.tokenizer.chat_template) or (first and first[0].startswith("▁")):
            return ids
        return self._encode(" " + text)

    def _encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        # verbose=False: a long text is cut into windows later, so its length is no news.
        encoded = self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
        return list(encoded["input_ids"])


@dataclass(frozen=True, slots=True)
class Generated:
    """A continuation.

    Attributes:
        text: Without the white space around it.
        tokens: Number of tokens generated, the one that ended it included.
        finish_reason: "stop" (the model ended it), "length" or "cancelled".
        prefill: Seconds until the first token was there.
        decode: Seconds from there on.
    """

    text: str
    tokens: int
    finish_reason: FinishReason
    prefill: float
    decode: float


def generate(
    lm: LanguageModel,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    on_text: Callable[[str], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    stop: Sequence[str] = (),
) -> Generated:
    """Continue a prompt greedily: at each place the likeliest token.

    Args:
        lm: The model, in evaluation mode.
        prompt: Token ids.
        max_new_tokens: Tokens to generate at most.
        on_text: Told each piece of text as it comes; the pieces together are the text.
        cancelled: Asked after each token whether to end here.
        stop: Strings that end the text before the first of them. White space at the beginning of
            the text does not count.
    """
    pieces = _Pieces(lm, on_text, stop)
    ids = torch.tensor([prompt], device=lm.model.device)  # (1, T)
    began = time.perf_counter()
    lm.model.generate(  # type: ignore[operator]
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=_greedy(lm, max_new_tokens),
        stopping_criteria=[_Poll(lambda: pieces.stopped or cancelled())],
        streamer=pieces,
    )
    ended = pieces.stopped or (pieces.tokens and pieces.tokens[-1] in lm.eos)
    reason: FinishReason = "stop" if ended else "cancelled" if cancelled() else "length"
    first, ended_at = pieces.first_token or began, time.perf_counter()
    return Generated(pieces.text, len(pieces.tokens), reason, first - began, ended_at - first)


@torch.no_grad()
def score(lm: LanguageModel, prompt: Sequence[int], reference: Sequence[int]) -> float:
    """Nats (negative log likelihood) of all tokens of `reference`, given `prompt`.

    Args:
        lm: The model, in evaluation mode.
        prompt: Token ids, at least one.
        reference: Token ids, at least one.

    Raises:
        ValueError: If one of them is empty or both together exceed the model's context.
    """
    if not prompt or not reference:
        raise ValueError("Prompt and reference must have at least one token each.")
    if len(prompt) + len(reference) > lm.context:
        raise ValueError(
            f"Prompt ({len(prompt)} tokens) and reference ({len(reference)}) exceed the model's "
            f"context of {lm.context} tokens: score a shorter reference."
        )
    ids = torch.tensor([[*prompt, *reference]], device=lm.model.device)  # (1, T)
    wanted = len(reference) + 1  # positions; all of a long prompt's logits would be gigabytes
    keep = {"logits_to_keep": wanted} if keeps_logits(lm.model) else {}
    logits = lm.model(input_ids=ids, use_cache=False, **keep).logits[0, -wanted:-1]
    nats = F.cross_entropy(logits.float(), ids[0, len(prompt) :], reduction="none")
    return float(nats.double().sum())


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode for a while; each module gets back the mode that it had."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


class _Pieces(BaseStreamer):
    """Decodes token by token, without the white space around the whole.

    A token is decoded after the one before it, as its text may depend on it (SentencePiece drops
    the space of a first word); half a character, white space that may be the last, and what may
    become a stop string wait.
    """

    def __init__(
        self, lm: LanguageModel, on_text: Callable[[str], None], stop: Sequence[str] = ()
    ) -> None:
        self.tokens: list[int] = []
        self.text = ""
        self.stopped = False  # by a stop string
        self.first_token: float | None = None  # when it came
        self._stop = tuple(stop)
        self._lm = lm
        self._on_text = on_text
        self._prompted = False
        self._waiting = ""
        self._start = 0  # of the tokens that are decoded along
        self._done = 0  # tokens whose text is out

    def put(self, value: torch.Tensor) -> None:
        if not self._prompted:  # the prompt comes first
            self._prompted = True
            return
        self.first_token = self.first_token or time.perf_counter()
        self.tokens += value.flatten().tolist()
        self._decode()

    def end(self) -> None:
        self._decode(last=True)

    def _decode(self, *, last: bool = False) -> None:
        before = self._read(self.tokens[self._start : self._done])
        now = self._read(self.tokens[self._start :])
        if now.endswith("\N{REPLACEMENT CHARACTER}") and not last:
            return
        self._start, self._done = self._done, len(self.tokens)
        self._push(now[len(before) :], last=last)

    def _read(self, tokens: list[int]) -> str:
        return str(
            self._lm.tokenizer.decode(
                tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    def _push(self, piece: str, *, last: bool) -> None:
        if self.stopped:
            return
        piece = self._waiting + piece
        if not self.text:
            piece = piece.lstrip()
        ends = [at for at in (piece.find(string) for string in self._stop) if at >= 0]
        if ends:
            self.stopped = True
            piece = piece[: min(ends)]
        held = 0 if last or self.stopped else self._begun(piece)
        ready = piece[: len(piece) - held].rstrip()
        self._waiting = piece[len(ready) :]
        if ready:
            self.text += ready
            self._on_text(ready)

    def _begun(self, piece: str) -> int:
        """Characters at the end with which a stop string may begin."""
        longest = max(map(len, self._stop), default=1) - 1
        return next(
            (n for n in range(min(longest, len(piece)), 0, -1) if _begins(self._stop, piece[-n:])),
            0,
        )


def _begins(strings: tuple[str, ...], start: str) -> bool:
    return any(string.startswith(start) for string in strings)


class _Poll(StoppingCriteria):
    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self._cancelled(), device=input_ids.device)


def _greedy(lm: LanguageModel, max_new_tokens: int) -> GenerationConfig:
    # Each value is given, as transformers fills the others in from the model's own settings.
    pad = lm.tokenizer.pad_token_id
    return GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        typical_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=list(lm.eos) or None,
        pad_token_id=pad if pad is not None else (lm.eos or (0,))[0],
    )


def _packed(layer: torch.nn.Module) -> int:
    """Weights of a quantised layer beyond the numbers that it holds: of 4 bits two are in one."""
    stands_for = getattr(layer, "in_features", 0) * getattr(layer, "out_features", 0)
    if not stands_for or any(layer.children()):
        return 0
    own = dict(layer.named_parameters(recurse=False))
    return max(0, stands_for - sum(own[name].numel() for name in own if name != "bias"))


def _special(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Finds what the tokenizer takes for a special token wherever it stands in a text."""
    added = tokenizer.added_tokens_decoder.values()
    names = {*tokenizer.all_special_tokens, *(str(token) for token in added if token.special)}
    longest = sorted((re.escape(name) for name in names if len(name) > 1), key=len, reverse=True)
    return re.compile("|".join(longest) or r"(?!)")  # of none: what is never found


def keeps_logits(model: PreTrainedModel) -> bool:
    """Whether the model can be asked for the logits of the last positions only."""
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _eos(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    own = getattr(model.generation_config, "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return tuple(dict.fromkeys(i for i in ids if i is not None))
