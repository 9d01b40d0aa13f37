"""The peer of prepare.py: `datasets.map` with `apply_chat_template`, as TRL's SFTTrainer prepares.

    datasets_map.py ROWS.jsonl MODEL PROCESSES FOLDER   prints one JSON line

Runs in TRL's environment, in a process of its own. The template is ChatML with the marks that TRL's
training templates have around what is trained, and gives the same ids as the model's own.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful "
    "AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)
ROLES = {"human": "user", "gpt": "assistant"}


def main() -> None:
    """Read and encode; the time is that of both, without imports and the tokenizer's loading."""
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    rows, model, processes, folder = sys.argv[1:]
    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(model)

    def encode(row: dict[str, Any]) -> dict[str, list[int]]:
        turns = row["conversations"]
        messages = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
        found = tokenizer.apply_chat_template(
            messages,
            chat_template=CHATML,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        return {name: found[name] for name in ("input_ids", "assistant_masks")}

    start = time.perf_counter()
    data = load_dataset("json", data_files=rows, split="train", cache_dir=folder)
    count = int(processes)
    done = data.map(encode, remove_columns=data.column_names, num_proc=count if count > 1 else None)
    seconds = time.perf_counter() - start
    sample = done.select(range(min(200, len(done))))
    print(
        json.dumps(
            {
                "rows": len(done),
                "seconds": seconds,
                "peak_rss_bytes": peak(),
                "first_tokens": [len(row["input_ids"]) for row in sample],
                "first_trained": [sum(row["assistant_masks"]) for row in sample],
            }
        )
    )


def peak() -> int | None:
    """Most memory that this process itself held (VmHWM)."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    return int(found[1]) * 1024 if found else None


if __name__ == "__main__":
    main()
