"""The teaching loop runs as a user would run it: its own process, a model folder, real rows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "sft_loop.py"
DATA = ROOT / "src" / "retone" / "datasets" / "yoda"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_model(folder: Path, template: str = CHATML) -> Path:
    """A random Llama and a byte-level tokenizer trained on the data, saved as a model folder."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator((DATA / "train.jsonl").read_text("utf-8").splitlines(), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def run(model: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(model), *flags],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"},
    )


def few_rows(folder: Path) -> Path:
    """A slice of the bundled data: the test asks whether the loop works, not what it can reach."""
    folder.mkdir()
    for name, count in (("train.jsonl", 128), ("test.jsonl", 12)):
        lines = (DATA / name).read_text("utf-8").splitlines(keepends=True)
        (folder / name).write_text("".join(lines[:count]), "utf-8")
    return folder


# peft asks transformers for a property that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_the_loop_trains_saves_and_scores(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    data = few_rows(tmp_path / "data")
    adapter = tmp_path / "adapter"
    done = run(model, "--max-steps", "20", "--data", str(data), "--out", str(adapter))
    assert done.returncode == 0, done.stderr

    losses = [float(x) for x in re.findall(r"^step \d+/20 loss ([\d.]+)$", done.stdout, re.M)]
    assert len(losses) == 20
    assert sum(losses[-5:]) < sum(losses[:5])

    scores = dict(re.findall(r"^(copy|base|tuned) +BLEU ([\d.]+)$", done.stdout, re.M))
    assert list(scores) == ["copy", "base", "tuned"]
    assert 10 < float(scores["copy"]) < 50  # the words are kept, their order is not

    base = AutoModelForCausalLM.from_pretrained(model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(adapter))
    ids = torch.arange(8)[None]  # [1, 8]
    with torch.no_grad():
        assert not torch.allclose(base(ids).logits, tuned(ids).logits)
    reached = {name.rpartition(".")[2] for name in tuned.peft_config["default"].target_modules}
    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert reached == attention | mlp


def test_a_template_that_never_stops_is_refused(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", CHATML.replace("<|im_end|>", ""))
    done = run(model, "--max-steps", "1", "--out", str(tmp_path / "adapter"))
    assert done.returncode == 1
    assert "does not extend its prompt to a stop" in done.stderr
    assert not (tmp_path / "adapter").exists()


def test_it_stays_short_and_alone() -> None:
    source = SCRIPT.read_text("utf-8")
    assert len(source.splitlines()) < 120
    assert not re.search(r"^\s*(?:import|from) retone", source, re.M)
