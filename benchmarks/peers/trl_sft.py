"""TRL's SFTTrainer, in two settings; run by train_cpu.py in TRL's own environment.

trl       as a user writes it: prompt and completion, TRL's own defaults for precision, attention
          and checkpointing
trl-best  its quickest on a CPU: bf16 weights without autocast, eager attention, nothing
          recomputed, rows grouped by length, loss on the assistant's tokens only
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from stepclock import StepClock, read_job
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

CONTENT = "message['content'] + '<|im_end|>'"


def dataset(rows: list[dict[str, Any]], best: bool) -> Dataset:
    """Conversations for the best setting, pairs of prompt and completion for the default one."""
    turns = [row["messages"] for row in rows]
    if best:
        return Dataset.from_list([{"messages": messages} for messages in turns])
    return Dataset.from_list(
        [{"prompt": messages[:-1], "completion": messages[-1:]} for messages in turns]
    )


def marked_template(model: str, work: Path) -> str:
    """The model's chat template with TRL's generation marks around content and end token."""
    source = AutoTokenizer.from_pretrained(model).chat_template
    turn = "{{'<|im_start|>' + message['role'] + '\n' + " + CONTENT + " + '\n'}}"
    if source.count(turn) != 1:
        raise ValueError(f"the template of the model is not the expected one: {source!r}")
    marked = (
        "{{'<|im_start|>' + message['role'] + '\n'}}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{" + CONTENT + "}}{% endgeneration %}"
        "{% else %}{{" + CONTENT + "}}{% endif %}{{'\n'}}"
    )
    path = work / "marked.jinja"
    path.write_text(source.replace(turn, marked), encoding="utf-8")
    return str(path)


def settings(job: dict[str, Any], best: bool) -> dict[str, Any]:
    """What is set beside TRL's defaults."""
    shared = {
        "output_dir": job["work"],
        "num_train_epochs": job["epochs"],
        "max_steps": job["steps"] or -1,
        "per_device_train_batch_size": job["batch_size"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "linear",
        "warmup_steps": job["warmup_steps"],
        "seed": job["seed"],
        "use_cpu": True,  # without it, its default of bf16 is refused where there is no GPU
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
    }
    if not best:
        return shared
    return shared | {
        "model_init_kwargs": {"dtype": "bfloat16", "attn_implementation": "eager"},
        "bf16": False,  # the weights are bf16: autocast would only add casts
        "gradient_checkpointing": False,
        "train_sampling_strategy": "group_by_length",
        "assistant_only_loss": True,
        "chat_template_path": marked_template(job["model"], Path(job["work"])),
    }


def main() -> None:
    """Train, save the adapter, print one JSON line."""
    job, rows = read_job()
    best = job["candidate"] == "trl-best"
    clock = StepClock(rows)
    trainer = SFTTrainer(
        model=job["model"],
        args=SFTConfig(**settings(job, best)),
        train_dataset=dataset(rows, best),
        peft_config=LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules="all-linear"),
        callbacks=[clock],
    )
    trainer.train()
    trainer.save_model(job["adapter"])
    print("\n" + json.dumps(clock.result("trl")))


if __name__ == "__main__":
    main()
