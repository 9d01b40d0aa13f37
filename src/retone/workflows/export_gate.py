"""The gate of an export, wired: the run, the file's own engine, and the limits between them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from peft import PeftModel
from transformers import AutoTokenizer, GenerationConfig

from retone import console
from retone.conversation import Message
from retone.errors import MachineError
from retone.evaluation.gate import TOKENS, Check, Gate, Prompt, Said, judge, not_run, say
from retone.inference.engine import Engine
from retone.inference.llama_cpp import LlamaServer
from retone.inference.speaking import LlamaSpeaker, OwnSpeaker, PlainSpeaker, Speaker
from retone.models.loading import load_base
from retone.models.merging import largest_error
from retone.models.saving import load_tuned
from retone.planning import probe_machine
from retone.run_dir import read_json
from retone.workflows.load import Opened, read_split

Made = TypeVar("Made")
PROMPTS = 20
FROM_TEST = 12  # of them: the first held-out rows
# What any chat model can be asked, with what tokenizers get wrong: digits, accents, blanks, code.
GENERAL = (
    "Hello! Who are you?",
    "What is 1234567 plus 89, and what is 3.14 times 2?",
    "  Two  spaces, a\nnewline and an é.",
    "用一句话介绍你自己。",
    "Explain this:\n\n```python\nfor i in range(10):\n    print(i ** 2)\n```",
    "Is a tomato a fruit? 🍅 Answer yes or no, and why 🙂.",
    "WHY IS THIS WRITTEN IN CAPITALS?",
    "What would you say to somebody who lost their keys?",
    "Name three things that are blue.",
    "Écris une phrase en français, s'il te plaît.",
    "List:\n- one\n- two\n\nWhat comes next?",
    "What's the difference between its and it's?",
    "a",
    "Tell me about the sea, in two sentences.",
    "Give me a recipe with 250 g of flour and 2 eggs.",
    "Complete: the quick brown fox ...",
    "How many minutes are there in 2.5 hours?",
    "Translate 'good morning' into Spanish.",
    "Write a haiku about rain.",
    "Thank you. Goodbye!",
)


def prompts_of(opened: Opened) -> list[Prompt]:
    """The fixed prompts of a run: its first held-out rows, those of its template's lock, and
    general ones up to 20."""
    recipe = opened.resolved.recipe
    rows = []
    if recipe.data.task != "text" and opened.run.split("test").is_file():
        rows = read_split(opened.run, "test", FROM_TEST)
    held = opened.template.with_system  # what other programs render has to be what ours does
    asked = [Prompt(held(row.prompt), row.answer) for row in rows if row.question]
    locks = read_json(opened.run.template_lock)["prompts"]
    locked = [Prompt(held([Message(**turn) for turn in lock["messages"]])) for lock in locks]
    system = (Message("system", recipe.data.system),) if recipe.data.system else ()
    general = [Prompt(held((*system, Message("user", text)))) for text in GENERAL]
    return [*asked, *locked, *general][:PROMPTS]


def hear(opened: Opened, tick: console.Ticker) -> list[Said]:
    """What the run itself says to the fixed prompts.

    On a CPU it computes in float32, so that what differs is the export and not the luck of
    rounding; on a GPU as it was trained, for float32 may not fit.
    """

    def ask(model: Any) -> list[Said]:
        engine = Engine(model, opened.tokenizer, opened.template)
        return say(OwnSpeaker(engine), prompts_of(opened), _counted(tick, "asking the run"))

    return _with(lambda: load_tuned(opened.run.tuned, opened.base, trained(opened)), ask)


def adapter_gate(
    opened: Opened, folder: Path, said: list[Said], tick: console.Ticker, limits: dict[str, float]
) -> Gate:
    """The gate of a peft folder on the base that it was trained on."""

    def load() -> Any:
        model = PeftModel.from_pretrained(trained(opened)(opened.base.path), folder).eval()
        model.generation_config = GenerationConfig.from_pretrained(folder)
        return model

    return _with(load, lambda model: _plainly(opened, model, folder, said, tick, limits))


def merged_gate(
    opened: Opened, folder: Path, said: list[Said], tick: console.Ticker, limits: dict[str, float],
    dtype: str,
) -> Gate:  # fmt: skip
    """The gate of a folder that holds a whole model."""
    device = probe_machine().device
    kind = "float32" if device == "cpu" else dtype
    model = opened.resolved.recipe.model

    def load() -> Any:
        return load_base(folder, dtype=kind, attention=model.attention, device=device)

    return _with(load, lambda model: _plainly(opened, model, folder, said, tick, limits))


def llama_gate(
    opened: Opened, file: Path, said: list[Said], tick: console.Ticker, *, limits: dict[str, float],
    lora: Path | None = None,
) -> Gate:  # fmt: skip
    """The gate of a GGUF file, run by llama.cpp; "not run" where that is not installed."""
    context = max((len(one.ids) for one in said), default=0) + 3 * TOKENS
    try:
        with LlamaServer(file, lora=lora, context=context) as server:
            return _judged(opened, LlamaSpeaker(server), said, tick, limits)
    except MachineError as error:
        if error.code != "no-llamacpp":
            raise
        return not_run(f"{error.found}; {error.remedy}")


def weights_check(written: Path, base: Path, adapter: Path | None, limit: float) -> Check:
    """Whether a folder holds base + adapter: what a model says may hide a wrong matrix."""
    found = largest_error(written, base, adapter)
    if found is None:
        return Check(None, limit, None, "not run: only the sum of a plain LoRA can be told")
    error, name = found
    meant = "base + adapter" if adapter else "the run's own"
    told = f"largest relative error of a matrix against {meant} ({name})"
    return Check(error, limit, error <= limit, told)


def _plainly(
    opened: Opened, model: Any, folder: Path, said: list[Said], tick: console.Ticker,
    limits: dict[str, float],
) -> Gate:  # fmt: skip
    """The gate of a model in plain transformers, with its folder's own tokenizer."""
    speaker = PlainSpeaker(model, AutoTokenizer.from_pretrained(folder))
    return _judged(opened, speaker, said, tick, limits)


def _judged(
    opened: Opened, speaker: Speaker, said: list[Said], tick: console.Ticker,
    limits: dict[str, float],
) -> Gate:  # fmt: skip
    return judge(said, speaker, opened.template.parse, limits, _counted(tick, "asking the export"))


def _with(load: Callable[[], Any], ask: Callable[[Any], Made]) -> Made:
    """What a model says that is gone from memory afterwards."""
    try:
        return ask(load())
    finally:
        gc.collect()  # a whole tuned model and its base know each other


def trained(opened: Opened) -> Callable[[Path], Any]:
    """Loads models as the run had them: packed where it was; on a CPU else in float32."""
    model, device = opened.resolved.recipe.model, probe_machine().device
    exact = device == "cpu" and model.quantization == "none"

    def load(folder: Path) -> Any:
        return load_base(
            folder, dtype="float32" if exact else model.dtype, attention=model.attention,
            device=device, quantization=model.quantization, tokens=len(opened.tokenizer),
        )  # fmt: skip

    return load


def _counted(tick: console.Ticker, what: str) -> Callable[[int], None]:
    return lambda number: tick(what, number, PROMPTS)
