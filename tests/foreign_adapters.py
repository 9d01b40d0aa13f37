"""Adapters as other tools leave them: saved by peft alone, on tiny models."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM

import tiny

EXACT = ["model.dtype=float32", "model.attention=eager"]
ROWS = "prompt,completion\n" + "".join(f"The cat {n} sleeps,Sleeps it {n}\n" for n in range(6))


def saved(folder: Path, base: Path, config: Any, seed: int = 1) -> Path:
    """An adapter with random weights, as peft saves it."""
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.normal_(0, 0.3)
        model.save_pretrained(folder)
    return folder


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | settings)


CONFIGS: dict[str, Any] = {
    "rank_pattern": lambda: lora(target_modules=["q_proj", "up_proj"], rank_pattern={"q_proj": 2}),
    "rslora": lambda: lora(use_rslora=True),
    "dora": lambda: lora(use_dora=True),
    "tokens": lambda: lora(trainable_token_indices=[3, 4]),
    "ia3": lambda: IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"],
        task_type="CAUSAL_LM",
    ),
    "prefix": lambda: PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
    "prompt": lambda: PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM"),
}  # fmt: skip


def edit(folder: Path, **fields: Any) -> None:
    """Change fields of a saved adapter's config."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def base_model(folder: Path) -> Any:
    """A model in float32, ready to answer."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def in_peft(base: Any, folder: Path) -> Any:
    """A model with an adapter as peft loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(base, folder)


def logits(model: Any, ids: Any) -> torch.Tensor:
    """Of one row of ids: [1, seq, vocabulary]."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.tensor([list(ids)])).logits
    return found


def same(ours: Any, theirs: Any, ids: Any) -> None:
    """Two models say the same, but for the order of sums."""
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), rtol=1e-5, atol=1e-4)


def workplace(folder: Path) -> Path:
    """A folder with the base model `base` and rows.csv to be tested on."""
    tiny.folder(folder / "base", initializer_range=0.3)
    (folder / "rows.csv").write_text(ROWS)
    return folder
