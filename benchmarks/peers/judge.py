"""One judge for every adapter: plain transformers and peft, fp32, the bundled test rows.

judge.py ROWS ADAPTER...    prints one JSON line: mean loss in nats per answer token (end token
                            included) of the base model and of every adapter
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

BATCH = 12


@torch.no_grad()
def mean_loss(model: Any, rows: list[dict[str, Any]]) -> float:
    """Mean of -log p over every answer and end token of the rows."""
    total, count = 0.0, 0
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        longest = max(len(row["ids"]) for row in part)
        ids = torch.zeros((len(part), longest), dtype=torch.long)
        mask, trained = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for index, row in enumerate(part):
            ids[index, : len(row["ids"])] = torch.tensor(row["ids"])
            mask[index, : len(row["ids"])] = 1
            trained[index, row["trained"]] = True
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        chosen = trained[:, 1:]  # position i predicts token i + 1
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1][chosen].float(), ids[:, 1:][chosen], reduction="sum"
        )
        total, count = total + float(loss), count + int(chosen.sum())
    return total / count


def main() -> None:
    """Judge the base and every adapter named on the command line."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore")
    content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(
            content["model"]["path"], dtype=torch.float32, local_files_only=True
        ).eval()

    losses = {"base": mean_loss(base(), content["test"])}
    for folder in sys.argv[2:]:
        model = PeftModel.from_pretrained(base(), folder, local_files_only=True).eval()
        losses[folder] = mean_loss(model, content["test"])
        print(f"judged {len(losses) - 1} of {len(sys.argv) - 2}", file=sys.stderr, flush=True)
    print(json.dumps(losses))


if __name__ == "__main__":
    main()
