"""From a run directory to a model that answers."""

from __future__ import annotations

import datetime
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from retone import console
from retone.chat_template import ChatTemplate
from retone.config import Recipe
from retone.conversation import Conversation, Message
from retone.data.spool import read_rows
from retone.errors import InputError
from retone.inference.engine import Engine
from retone.inference.sampling import Answer, Sampling
from retone.models.loading import load_base, load_tokenizer, model_facts
from retone.models.locate import LocatedModel, locate
from retone.models.saving import load_tuned, require_same_base
from retone.planning import Resolved, dtype_for, probe_machine
from retone.run_dir import Run, read_json
from retone.workflows.adopt import run_or_adapter, trained_here

FROM_TEST = 6  # rows that are asked where a recipe has no showcase


@dataclass(frozen=True)
class Opened:
    """A run's settings, base model and tokenizer, with the template checked against its lock."""

    run: Run
    resolved: Resolved
    base: LocatedModel
    tokenizer: Any
    template: ChatTemplate

    def load_base_model(self) -> Any:
        """The base model as the run was resolved."""
        return self.load_folder(self.base.path)

    def load_folder(self, folder: Path) -> Any:
        """A model in the types and on the device of the run."""
        model = self.resolved.recipe.model
        return load_base(
            folder,
            dtype=model.dtype,
            attention=model.attention,
            device=probe_machine().device,
            quantization=model.quantization,
            tokens=len(self.tokenizer),
        )


class Tuned:
    """A tuned model that answers; made by `load`."""

    def __init__(self, engine: Engine, resolved: Resolved) -> None:
        self.engine = engine
        self.resolved = resolved
        self.system = resolved.recipe.data.system
        # Greedy, as long as the longest reference allows.
        self.sampling = Sampling(max_new_tokens=resolved.recipe.evaluate.max_new_tokens or 256)

    def messages(self, *turns: Message) -> list[Message]:
        """The turns, after the system prompt that the model was tuned with."""
        return [Message("system", self.system), *turns] if self.system else list(turns)

    def ask(self, text: str, *, tuned: bool = True, sampling: Sampling | None = None) -> Answer:
        """The answer to one prompt, of the tuned or of the base model."""
        respond = self.engine.tuned if tuned else self.engine.base
        return respond([self.messages(Message("user", text))], sampling or self.sampling)[0]

    def answer(self, text: str) -> str:
        """The text of the tuned model's answer to one prompt."""
        return self.ask(text).text


def open_run(run: Run, *, offline: bool = False) -> Opened:
    """Locate the run's base, refuse other weights and another template. Raises InputError."""
    manifest = read_json(run.manifest)
    resolved = Resolved.from_json(read_json(run.resolved))
    model = resolved.recipe.model
    with console.ticker() as tick:
        revision = manifest["base"]["revision"] or model.revision
        base = locate(model.name, revision=revision, offline=offline, progress=tick)
    trained = trained_here(manifest)
    anew = "retone run RECIPE --fresh" if trained else f"retone adopt {run.adapter} --model MODEL"
    remedy = f"put that model back, or start over: {anew}"
    require_same_base(run.name, manifest["base"], asdict(base), remedy)
    # Tokens and template that another tool added to an adapter's tokenizer are in that one alone.
    tokenizer = load_tokenizer(base if trained else replace(base, path=run.adapter))
    date = datetime.date.fromisoformat(manifest["date"]) if manifest["date"] else None
    template = ChatTemplate(tokenizer, name=base.name, date=date, style=model.template)
    changed = template.verify_lock(read_json(run.template_lock))
    if changed:
        raise InputError(
            "the chat template renders other tokens than when the run was made",
            f"{run.name}: {changed[0]}",
            f"restore the chat template, or start over: {anew}",
            "template-changed",
        )
    return Opened(run, resolved, base, tokenizer, template)


def read_split(run: Run, name: str, most: int | None = None) -> list[Conversation]:
    """The prepared conversations of train, validation or test, the first `most` of them."""
    return read_rows(run.split(name), most)


def sample_questions(run: Run, recipe: Recipe) -> list[str]:
    """What the run can be asked: the recipe's showcase, else questions of its first test rows."""
    if recipe.data.showcase or recipe.data.task == "text":
        return list(recipe.data.showcase)
    return [row.question for row in read_split(run, "test", FROM_TEST) if row.question]


def load_base_engine(name: str, *, offline: bool = False) -> tuple[Engine, str]:
    """An untuned model, as a recipe names it, ready to answer; and the sha256 of its weights."""
    machine = probe_machine()
    with console.ticker() as tick:
        base = locate(name, revision=None, offline=offline, progress=tick)
    dtype, _ = dtype_for(machine, model_facts(base))
    tokenizer = load_tokenizer(base)
    model = load_base(base.path, dtype=dtype, device=machine.device, tokens=len(tokenizer))
    return Engine(model, tokenizer, ChatTemplate(tokenizer, name=base.name)), base.sha256


def load(run: str | Run = "latest", *, offline: bool = False) -> Tuned:
    """A tuned model, ready to answer.

    Args:
        run: a run, its directory, its name, `latest`, or the folder of an adapter.
        offline: never ask a network.
    """
    found = run if isinstance(run, Run) else run_or_adapter(run, offline=offline)
    if not found.tuned.is_dir():
        raise InputError(
            f'the run "{found.name}" is not trained yet',
            f"status {found.status}",
            "retone run RECIPE   (the same recipe resumes it)",
            "not-trained",
        )
    opened = open_run(found, offline=offline)
    model = load_tuned(found.tuned, opened.base, opened.load_folder)
    batch_size = opened.resolved.recipe.evaluate.batch_size
    engine = Engine(model, opened.tokenizer, opened.template, batch_size=batch_size)
    return Tuned(engine, opened.resolved)
