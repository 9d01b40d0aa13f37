"""The whole tune in one file, without abstractions: read it from top to bottom.

    python examples/sft_loop.py HuggingFaceTB/SmolLM2-135M-Instruct --out yoda-adapter
    python examples/sft_loop.py path/to/a/model/folder --max-steps 4

It turns the bundled plain/Yoda pairs into chat rows, trains a LoRA adapter with a plain PyTorch
loop, answers the held-out sentences before and after, and prints BLEU for three candidates:
copying the input, the base model, the tuned model. It needs torch, transformers, peft and
sacrebleu, and nothing of retone itself.

Left out, on purpose: bf16 and every fast path, length buckets and packing, gradient accumulation
and clipping, resume, several devices, evaluation during training, confidence intervals, prompting
baselines, checks of the data, and templates that rewrite earlier turns. `retone train` has those.
"""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from sacrebleu import corpus_bleu
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

BUNDLED = Path(__file__).parents[1] / "src" / "retone" / "datasets" / "yoda"
SYSTEM = "Rewrite the sentence as Yoda would say it."
EPOCHS, BATCH, PEAK_LR, WARM_UP, NEW_TOKENS = 3, 16, 1e-3, 0.1, 64

parser = argparse.ArgumentParser(description="The tune without abstractions.")
parser.add_argument("model", help="a model folder or a hub id; its tokenizer has a chat template")
parser.add_argument("--data", type=Path, default=BUNDLED, help="holds train.jsonl and test.jsonl")
parser.add_argument("--out", type=Path, default=Path("yoda-adapter"), help="the adapter's folder")
parser.add_argument("--max-steps", type=int, help="stop early; the schedule shrinks with it")
args = parser.parse_args()

torch.manual_seed(0)  # LoRA's A matrices are random
shuffler = random.Random(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
train = [json.loads(line) for line in (args.data / "train.jsonl").read_text("utf-8").splitlines()]
test = [json.loads(line) for line in (args.data / "test.jsonl").read_text("utf-8").splitlines()]
tokenizer = AutoTokenizer.from_pretrained(args.model)
stop = tokenizer.eos_token_id
pad = stop if tokenizer.pad_token_id is None else tokenizer.pad_token_id
model: Any = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(device)


def chat(plain: str, yoda: str | None = None) -> list[int]:
    """The row as the model's own template spells it; without an answer, ready to be answered."""
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": plain}]
    turns += [] if yoda is None else [{"role": "assistant", "content": yoda}]
    ids: list[int] = tokenizer.apply_chat_template(
        turns, add_generation_prompt=yoda is None, return_dict=False
    )
    return ids


def encode(row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Token ids, and labels where -100 hides the prompt: only the answer and its stop count."""
    prompt, full = chat(row["plain"]), chat(row["plain"], row["yoda"])
    if full[: len(prompt)] != prompt or stop not in full[len(prompt) :]:
        raise SystemExit(f"{args.model}: the chat template does not extend its prompt to a stop")
    # The stop token is trained, or the model never learns to end; what follows it is not.
    full = full[: full.index(stop, len(prompt)) + 1]
    return full, [-100] * len(prompt) + full[len(prompt) :]


@torch.no_grad()
def answer_test() -> list[str]:
    model.eval()
    answers: list[str] = []
    for start in range(0, len(test), BATCH):
        prompts = [chat(row["plain"]) for row in test[start : start + BATCH]]
        width = max(map(len, prompts))  # padded on the left, so that all answers start together
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        out = model.generate(  # [batch, prompt + new]
            input_ids=ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False,
            eos_token_id=stop, pad_token_id=pad,
        )  # fmt: skip
        answers += tokenizer.batch_decode(out[:, width:], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


rows = [encode(row) for row in train]
base_answers = answer_test()

lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
model = get_peft_model(model, lora)
model.train()
optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=PEAK_LR)
order = [i for _ in range(EPOCHS) for i in shuffler.sample(range(len(rows)), len(rows))]
batches = [order[i : i + BATCH] for i in range(0, len(order), BATCH)][: args.max_steps]
for step, batch in enumerate(batches, start=1):
    width = max(len(rows[i][0]) for i in batch)
    fill = [width - len(rows[i][0]) for i in batch]  # padding on the right, never attended to
    x = torch.tensor([rows[i][0] + [pad] * n for i, n in zip(batch, fill, strict=True)])
    y = torch.tensor([rows[i][1] + [-100] * n for i, n in zip(batch, fill, strict=True)])
    x, y = x.to(device), y.to(device)  # [batch, seq] both
    logits = model(input_ids=x).logits[:, :-1]  # [batch, seq - 1, vocab]
    target = y[:, 1:]  # [batch, seq - 1]: position t predicts token t + 1
    count = (target != -100).sum()
    loss = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum") / count
    warm = step / max(1.0, WARM_UP * len(batches))
    fade = (len(batches) - step + 1) / max(1.0, (1 - WARM_UP) * len(batches))
    optimizer.param_groups[0]["lr"] = PEAK_LR * min(warm, fade, 1.0)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    print(f"step {step}/{len(batches)} loss {loss.item():.4f}", flush=True)

model.save_pretrained(args.out)
references = [[row["yoda"] for row in test]]
candidates = {"copy": [row["plain"] for row in test], "base": base_answers, "tuned": answer_test()}
for name, answers in candidates.items():
    print(f"{name:5} BLEU {corpus_bleu(answers, references).score:.1f}")
