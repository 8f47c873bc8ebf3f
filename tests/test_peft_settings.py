"""peft's settings: what is taken, and what is refused before anything is trained."""

import json
from typing import Any

import peft
import pytest

from sift_rag.peft_settings import peft_config, peft_settings


def test_a_config_object_says_its_rank_and_alpha_and_nothing_else_that_is_usual() -> None:
    config = peft.LoraConfig(target_modules=["v_proj", "q_proj"], use_dora=True, lora_dropout=0.1)
    assert peft_settings(config) == {
        "peft_type": "LORA",
        "r": 8,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj"],
        "use_dora": True,
        "lora_dropout": 0.1,
    }


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=3, rank_pattern={"q_proj": 5}, target_modules=["q_proj"]),
        peft.LoraConfig(layers_to_transform=[1], target_modules=["q_proj"], use_rslora=True),
        peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[]),
        peft.LoHaConfig(r=2, alpha=4, target_modules="all-linear"),
        peft.PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    ],
)
def test_settings_are_json_and_settings_of_settings_are_the_same(config: Any) -> None:
    settings = peft_settings(config)
    assert json.loads(json.dumps(settings)) == settings
    assert peft_settings(settings) == settings
    assert peft_settings(config.to_dict()) == settings


def test_what_is_left_open_is_ours() -> None:
    made = peft_config(peft_settings({"peft_type": "LORA"}), rank=3, target_modules=("q_proj",))
    assert (made.r, made.target_modules, made.task_type) == (3, {"q_proj"}, "CAUSAL_LM")
    assert made.lora_alpha != made.lora_alpha  # NaN: it is known at each reset
    said = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "lora_dropout": 0.5}
    made = peft_config(peft_settings(said), rank=3, target_modules="all-linear")
    assert (made.r, made.lora_alpha, made.lora_dropout) == (8, 8, 0.0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (peft.LoraConfig(modules_to_save=["lm_head"]), r"modules_to_save=\['lm_head'\].*not taken"),
        (peft.LoraConfig(bias="all"), "bias='all', which is not taken with LORA.*Taken are"),
        (peft.LoraConfig(trainable_token_indices=[1]), "trainable_token_indices"),
        (peft.LoraConfig(layer_replication=[(0, 1)]), "layer_replication"),
        (peft.LoraConfig(init_lora_weights="pissa"), "init_lora_weights is 'pissa'; taken are"),
        (peft.LoraConfig(init_lora_weights=False), "init_lora_weights is False; taken are True"),
        (peft.LoraConfig(task_type="SEQ_CLS"), "task_type is 'SEQ_CLS'; taken are 'CAUSAL_LM'"),
        (peft.IA3Config(init_ia3_weights=False), "init_ia3_weights=False, which is not taken"),
        (peft.VeraConfig(), "peft_type is 'VERA'; taken are LORA, IA3"),
        (peft.PromptTuningConfig(), "peft_type is 'PROMPT_TUNING'"),
        ({"r": 8}, "peft_type is None; taken are LORA"),
        ({"peft_type": "lora"}, "peft_type is 'lora'"),
        ({"peft_type": "LORA", "rank": 8}, "rank=8, which is not taken.*r, rank_pattern"),
    ],
)
def test_what_is_not_taken_is_named_with_what_is(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        peft_settings(given)


@pytest.mark.parametrize("given", [8, "LORA", None, [("peft_type", "LORA")]])
def test_what_is_no_config_is_an_error(given: Any) -> None:
    with pytest.raises(TypeError, match="it must be a config of peft"):
        peft_settings(given)
