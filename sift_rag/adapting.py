"""The adapter for one question: kept from before, or trained now, or neither and why."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sift_rag.adapter_cache import AdapterCache, CachedAdapter
from sift_rag.adapters import Adapter, Adapters
from sift_rag.documents import Document, content_hash
from sift_rag.generation import LanguageModel, generate
from sift_rag.lessons import Example, held_out, windows
from sift_rag.objectives import Lesson, examples_of
from sift_rag.out_of_memory import is_out_of_memory
from sift_rag.prompting import PromptTemplate, stuffed
from sift_rag.training import checked, train
from sift_rag.training_config import Stopped, TrainingConfig, TrainingReport

if TYPE_CHECKING:
    from sift_rag.answering import Request
    from sift_rag.worker import Job

_SLICE = (16, 128)  # tokens: fewer say little of a text, more take their time
_SHORTEST = 64  # tokens of a step, below which memory is not what is wrong
_KEPT = ("completed", "early")  # ends that the same call comes to again
_OUT_OF_MEMORY = TrainingReport(
    losses=(),
    steps=0,
    tokens=0,
    seconds=0.0,
    reset_seconds=0.0,
    stopped="out_of_memory",
    adapter_used=False,
)


class _Material(NamedTuple):
    """What one training has to go on."""

    texts: Sequence[Sequence[int] | Example]
    probes: Mapping[str, Sequence[Example]]
    near: CachedAdapter | None  # what it begins with


@dataclass(frozen=True)
class Adapting:
    """A model, its adapters, and those kept from before.

    Attributes:
        lm: The model.
        template: The words around question and passages.
        cache: Where trained adapters are kept; None keeps none.
    """

    lm: LanguageModel
    template: PromptTemplate
    cache: AdapterCache | None

    @cached_property
    def _adapters(self) -> Adapters:
        return Adapters(self.lm.model)

    @cached_property
    def _base(self) -> str:
        """The model's name and a fingerprint of its weights: some numbers of each."""
        digest = sha256(str(self.lm.model.config.to_dict()).encode())
        for name, weight in self.lm.model.named_parameters():
            flat = weight.detach().reshape(-1)
            some = flat[:: max(1, flat.numel() // 16)].float().cpu().numpy()
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}".encode() + some.tobytes())
        return f"{self.lm.model.config.name_or_path} {digest.hexdigest()}"

    def __call__(self, request: Request, job: Job[Any], attached: ExitStack) -> TrainingReport:
        """Attach an adapter for the request, or say in the report why there is none."""
        control = request.control
        control.training = request.training
        told = {"config": request.training.plain(), "texts": len(request.documents)}
        request.tell("on_train_start", **told)
        config = _training_config(control.training)  # a callback may have replaced it
        adapter = self._adapters.get(config.rank, config.target_modules, config.peft)
        report = self._kept(request, config, adapter) or self._trained(
            request, config, adapter, job
        )
        if report.adapter_used:
            attached.enter_context(adapter.attached())
            if request.export is not None:
                adapter.export(request.export, self.lm.model.config.name_or_path or "")
        request.tell("on_train_end", **report.plain())
        return report

    def _kept(
        self, request: Request, config: TrainingConfig, adapter: Adapter
    ) -> TrainingReport | None:
        """Put the weights of the same training into the adapter, if they are kept."""
        if self.cache is None:
            return None
        found = self.cache.find(self._key(request, config))
        if found is None or found.weights.size != adapter.weights.numel():
            return None
        then = dict(found.report)
        asked = then.pop("question", None)
        try:
            report = replace(TrainingReport.from_plain(then), cache="hit", seconds=0.0, tokens=0)
        except (TypeError, KeyError, ValueError):  # of another release, or not of ours
            return None
        adapter.reset(seed=config.seed, alpha=config.alpha)
        adapter.weights.data.copy_(torch.from_numpy(found.weights))
        if config.guard is None or asked == content_hash(request.question):
            return report
        probes = self._probes(request, self._fitting(config, adapter), [])
        return checked(self.lm.model, adapter, report, probes, config.guard)

    def _fitting(self, config: TrainingConfig, adapter: Adapter) -> TrainingConfig:
        """With a window that the model's context has room for."""
        return replace(config, window=min(config.window, self.lm.context - adapter.length))

    def _trained(
        self, request: Request, config: TrainingConfig, adapter: Adapter, job: Job[Any]
    ) -> TrainingReport:
        """Train, and keep what came of it."""
        began, asked_for = time.perf_counter(), config
        config = self._fitting(config, adapter)
        texts, slices, note = self._texts(request, config, job)
        if config.max_seconds is not None:  # making the examples counts
            left = config.max_seconds - (time.perf_counter() - began)
            config = replace(config, max_seconds=max(left, 1e-9))
        near = self._nearest(request, asked_for, adapter)
        material = _Material(texts, self._probes(request, config, slices), near)
        report, short = self._fitted(request, config, adapter, material, job)
        report = replace(report, note=" ".join(filter(None, (note, short))), length=adapter.length)
        if self.cache is None:
            return report
        if report.adapter_used and report.stopped in _KEPT and not short:
            key, weights = self._key(request, asked_for), adapter.weights.detach()
            told = report.plain() | {"question": content_hash(request.question)}
            self.cache.put(key, weights, request.documents, told, began_with=near)
        return replace(report, cache="miss")

    def _nearest(
        self, request: Request, config: TrainingConfig, adapter: Adapter
    ) -> CachedAdapter | None:
        """What a warm start begins with: an adapter that saw most of the same passages."""
        if self.cache is None or not config.warm_start:
            return None
        found = self.cache.closest(
            request.documents,
            base=self._base,
            config=self._settings(request, config),
            tenant=request.tenant,
        )
        fits = found is not None and found.weights.size == adapter.weights.numel()
        return found if fits else None

    def _texts(
        self, request: Request, config: TrainingConfig, job: Job[Any]
    ) -> tuple[Sequence[Sequence[int] | Example], list[Example], str]:
        """What is trained on, ends of long texts that are not, and what is to be said of it."""
        passages = tuple(document.text for document in request.documents)
        if config.objective == "text" and config.weigh is None:
            texts = [self.lm.text(passage) for passage in passages]
            looked_at = config.guard is not None or config.early_stop
            share = config.held_out if looked_at else 0.0
            kept, slices = held_out(texts, share, *_SLICE)
            return kept, slices, ""
        lesson = Lesson(
            request.question,
            passages,
            self.lm,
            request.template or self.template,
            config.window,
            lambda question, read: self._written(question, read, request, job),
            config.weigh,
            written_by=request.max_new_tokens,
        )
        examples, note = examples_of(config.objective, lesson)
        return examples, [], note

    def _written(
        self, question: str, passages: Sequence[str], request: Request, job: Job[Any]
    ) -> str:
        """What the base answers with passages in its context; no adapter is attached."""
        prompt = stuffed(
            question,
            [Document(passage) for passage in passages],
            budget=self.lm.context - request.max_new_tokens,
            count=lambda text: len(self.lm.prompt(text)),
            template=request.template or self.template,
        )
        if not prompt.documents:
            raise ValueError(f"no passage fits the model's context of {self.lm.context} tokens")
        made = generate(
            self.lm,
            self.lm.prompt(prompt.text),
            max_new_tokens=request.max_new_tokens,
            cancelled=lambda: job.cancelled,
        )
        job.check()
        return made.text

    def _probes(
        self, request: Request, config: TrainingConfig, slices: list[Example]
    ) -> dict[str, list[Example]]:
        texts: dict[str, Sequence[Sequence[int] | Example]] = {"held_out": slices}
        if config.guard is not None:
            texts |= self._asked(request, config)
            near = [self.lm.text(each.text, end=False) for each in request.beside]
            texts["beside"] = [ids[: _SLICE[1]] for ids in near]
            texts["canary"] = [self.lm.text(canary, end=False) for canary in config.canary]
        probes = {name: windows(each, config.window) for name, each in texts.items()}
        return {name: examples for name, examples in probes.items() if examples}

    def _asked(self, request: Request, config: TrainingConfig) -> dict[str, list[Example]]:
        """The question's own words, as many as a step may have; the end of a long one by itself
        too, as its beginning may repeat what was trained on."""
        whole = windows(
            [self.lm.text(request.question, end=False)[-config.window :]], config.window
        )
        last = [each for each in whole if len(each.ids) >= 2 * _SLICE[0]]
        return {
            "question": whole,
            "question_end": [replace(each, start=len(each.ids) // 2) for each in last],
        }

    def _fitted(
        self,
        request: Request,
        config: TrainingConfig,
        adapter: Adapter,
        material: _Material,
        job: Job[Any],
    ) -> tuple[TrainingReport, str]:
        """Train; with shorter texts, and a word on it, where memory is short."""

        def interrupted() -> Stopped | None:
            control = request.control
            return "cancelled" if job.cancelled else "callback" if control.stopped else None

        window, near = config.window, material.near
        while True:
            try:
                with adapter.attached():
                    report = train(
                        self.lm.model,
                        adapter,
                        material.texts,
                        replace(config, window=window),
                        probes=material.probes,
                        initial=None if near is None else torch.from_numpy(near.weights),
                        interrupted=interrupted,
                        on_step=lambda told: request.tell("on_train_step", **told),
                    )
                short = window < config.window
                said = f"Memory was short: it learnt from {window} tokens at a time."
                return report, said * short
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            if torch.cuda.is_available():  # the error's frames, and what they held, are gone
                torch.cuda.empty_cache()
            if window // 2 < _SHORTEST:
                return _OUT_OF_MEMORY, ""
            window //= 2

    def _key(self, request: Request, config: TrainingConfig) -> str:
        settings = self._settings(request, config)
        return AdapterCache.key(
            base=self._base, config=settings, documents=request.documents, tenant=request.tenant
        )

    def _settings(self, request: Request, config: TrainingConfig) -> list[Any]:
        """All that an adapter depends on, beside base, passages and tenant."""
        settings: list[Any] = [replace(config, max_seconds=None)]
        if config.objective != "text":  # the others may look at the question, and ask the base
            words = request.template or self.template
            settings += [request.question, words, self.lm.chat, request.max_new_tokens]
        return settings


def _training_config(value: Any) -> TrainingConfig:
    if not isinstance(value, TrainingConfig):
        raise TypeError(
            f"control.training is {value!r}; it must be a TrainingConfig, such as "
            "dataclasses.replace(control.training, epochs=1)."
        )
    return value
