"""Prefix tuning: learnt keys and values that lie before a text's own (arXiv 2101.00190)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PrefixEncoder
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

# Of a first draw. Drawn as peft does (1.0), a prefix breaks the base, and a few steps do not mend
# it: on stories of a model of 0.26M parameters, 8 tokens, 30 steps: 1.73 nats a token -> 6.70 ->
# 4.77 at the best rate of two; a tenth of that 1.73 -> 1.89 -> 1.35 (at a rate of 0.1).
_SCALE = 0.1


class Prefix:
    """A prefix for one model: it lies in the cache before the first token is there.

    Other than LoRA, it does not begin at the base: until it is trained, it disturbs a little. It
    wants a far higher learning rate than LoRA, 0.03 to 0.1.

    Attributes:
        config: peft's.
        length: Tokens of the model's context that it takes.
        places: Where its weights lie: modules and the names of their parameters.

    Raises:
        ValueError: If it has no length, or the model keeps something else than keys and values of
            one shape.
    """

    def __init__(self, model: PreTrainedModel, config: Any) -> None:
        self.config = config
        self.length = config.num_virtual_tokens
        if not isinstance(self.length, int) or self.length < 1:
            raise ValueError(
                f"peft's num_virtual_tokens is {self.length!r}; it must be a whole number of at "
                "least 1."
            )
        self._model = model
        config.num_layers, config.num_attention_heads, width = _shape(model)
        config.token_dim = config.num_attention_heads * width
        config.num_transformer_submodules = 1
        config.encoder_hidden_size = config.encoder_hidden_size or config.token_dim
        with torch.device("meta"):  # no random number is drawn
            self._encoder: Any = PrefixEncoder(config)  # type: ignore[no-untyped-call]
        self.places = [
            (module, name) for module in self._encoder.modules() for name in module._parameters
        ]
        self._hook: Any = None

    def draw(self, seed: int) -> None:
        """Fill the weights with the first ones of that seed."""
        with seeded(seed, self._encoder.embedding.weight.device):
            for module in self._encoder.modules():
                if isinstance(module, nn.Embedding | nn.Linear):
                    module.reset_parameters()
        zero = getattr(self.config, "init_weights", None) == "zero"
        last = self._encoder.transform[-1] if self.config.prefix_projection else self._encoder
        for weight in last.parameters():
            weight.data.mul_(0.0 if zero else _SCALE)

    def scale(self, alpha: float) -> None:
        """Nothing: a prefix has no scale."""

    def put_in(self) -> None:
        """From here on the model's calls begin with the prefix."""
        self._hook = self._model.register_forward_pre_hook(self._before, with_kwargs=True)

    def take_out(self) -> None:
        """The model is as it was."""
        self._hook.remove()

    @torch.no_grad()
    def named(self) -> dict[str, Tensor]:
        """The weights under the names that peft gives them."""
        return {"prompt_embeddings": self._embedded()}

    def saved(self) -> dict[str, Any]:
        """What a saved config says of the layers: nothing."""
        return {}

    def _embedded(self) -> Tensor:
        """(length, layers * 2 * heads * width)"""
        device = self._encoder.embedding.weight.device
        embedded: Tensor = self._encoder(torch.arange(self.length, device=device))
        return embedded

    def _before(self, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """A call of the model, as it is with the prefix before it."""
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        ids: Any = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if cache is None:
            cache = DynamicCache(config=self._model.config)
        elif not isinstance(cache, DynamicCache):
            raise ValueError(
                f"A prefix needs a cache that grows; this call has a {type(cache).__name__}: "
                "unset cache_implementation in the model's generation_config."
            )
        if not cache.get_seq_length():
            self._fill(cache, len(ids))
        changed: dict[str, Any] = {"past_key_values": cache}
        if mask is not None:
            changed["attention_mask"] = torch.cat([mask.new_ones(len(mask), self.length), mask], 1)
        for name in ("position_ids", "cache_position"):  # counted without the prefix
            if kwargs.get(name) is not None:
                changed[name] = kwargs[name] + self.length
        return args, kwargs | changed

    def _fill(self, cache: Any, rows: int) -> None:
        config, embedded = self.config, self._embedded().to(self._model.dtype)
        parts = embedded.view(self.length, 2 * config.num_layers, config.num_attention_heads, -1)
        parts = parts.permute(1, 2, 0, 3)[:, None].expand(-1, rows, -1, -1, -1)
        for layer, (keys, values) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
            cache.update(keys, values, layer)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draw by this seed for a while; the process's own random state stays."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def _shape(model: PreTrainedModel) -> tuple[int, int, int]:
    """Layers, heads and width of a head in the model's cache, found by looking at one."""
    ids = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    cache = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
    kept_by = getattr(cache, "layers", ())  # some caches of convolutions have none
    kept = [(getattr(one, "keys", None), getattr(one, "values", None)) for one in kept_by]
    shapes = {tuple(part.shape) if part is not None else () for pair in kept for part in pair}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 4:
        some, kind = sum(keys is not None for keys, _ in kept), model.config.model_type
        raise ValueError(
            "Prefix tuning needs a model whose layers all keep keys and values of one shape; of "
            f"this {kind} {some} of {model.config.num_hidden_layers} do, as convolutions and state "
            'spaces keep none: take a LoRA, peft={"peft_type": "LORA"}, or IA3.'
        )
    return len(kept), shape[1], shape[3]
