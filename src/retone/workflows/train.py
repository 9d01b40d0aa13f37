"""`retone train`: the run's data through `fit`, and what was tuned saved."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.markup import escape

from retone import console
from retone.conversation import Message
from retone.data.preparing import PreparedData
from retone.inference.engine import Engine
from retone.models.adapters import initial_part, own_part, read_part
from retone.models.methods import METHODS, count_parameters
from retone.models.precision import in_precision, mixed_precision
from retone.models.saving import add_older, save_tuned
from retone.planning import Resolved
from retone.recipe_file import find_recipe, load_recipe
from retone.run_dir import Run, read_json, read_jsonl, whole_folder, write_json, write_whole
from retone.training.loop import FitData, FitResult, fit
from retone.workflows.create import create
from retone.workflows.load import Opened, Tuned, open_run, sample_questions


def train(run: Run, *, offline: bool = False) -> FitResult:
    """Train a run (or go on where it was stopped) and save what was tuned.

    Raises Interrupted when stopped, after a checkpoint; MachineError for a full disk or a loss
    that is no longer finite.
    """
    import torch

    opened = open_run(run, offline=offline)
    recipe = opened.resolved.recipe
    data = PreparedData(run.data)
    torch.manual_seed(recipe.train.seed)
    method = METHODS[recipe.method.kind]
    model = opened.load_base_model()
    if recipe.model.adapter:
        model = add_older(model, run.parent, merged=recipe.model.adapter_use == "merged")
    model = method.prepare(model, recipe.method)
    parts = initial_part(model, recipe.method)
    if recipe.model.adapter:
        parts.append(read_part(run.parent))
    if parts:
        own_part(model)  # what cannot be added up is refused before training
    parameters = count_parameters(model)
    console.note(str(parameters))
    console.note(_type_told(opened.resolved))

    with run.locked(), console.ticker() as tick:
        result = fit(
            model,
            FitData(data.rows("train"), data.rows("validation"), opened.template.stop_id),
            recipe.train,
            opened.resolved.total_steps,
            method=recipe.method,
            objective=recipe.objective,
            checkpoints=run.checkpoints,
            metrics=run.metrics,
            listen=_listener(tick, recipe.train.minutes, _asker(run, opened, model)),
        )
        with whole_folder(run.model if method.saved_as == "model" else run.adapter) as staging:
            save_tuned(
                model,
                recipe.method,
                opened.base,
                staging,
                dtype=recipe.model.dtype,
                tokenizer=opened.tokenizer,
                template=opened.template.text,
                parts=parts,
            )
        write_json(run.training, {**asdict(result), "parameters": asdict(parameters)})
    return result


def _asker(run: Run, opened: Opened, model: Any) -> Callable[[int], None]:
    """A function of the step that has the model answer a few questions, kept in samples.jsonl."""
    recipe = opened.resolved.recipe
    questions = sample_questions(run, recipe)[: recipe.train.sample_answers]
    engine = Engine(model, opened.tokenizer, opened.template)
    tuned = Tuned(engine, opened.resolved)
    # Weights that are trained lie in float32 among others, as in a training step.
    answer = in_precision(engine.tuned, mixed_precision(model), model.device)

    def ask(step: int) -> None:
        if not questions:
            return
        kept = read_jsonl(run.samples) if run.samples.is_file() else []
        # A run that goes on from a checkpoint comes by some steps again.
        lines = [line for line in kept if line["step"] < step]
        model.eval()
        prompts = [tuned.messages(Message("user", question)) for question in questions]
        answers = answer(prompts, tuned.sampling)
        model.train()
        for question, found in zip(questions, answers, strict=True):
            lines.append({"step": step, "question": question, "answer": found.text})
        write_whole(
            run.samples, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )

    return ask


@dataclass(frozen=True)
class TrainResult:
    """A trained run."""

    run: Run

    def as_json(self) -> dict[str, Any]:
        """The object of `retone train --json`."""
        return {"run": str(self.run.path), **read_json(self.run.training)}

    def show(self) -> None:
        """Print how training ended."""
        facts = read_json(self.run.training)
        loss = "" if facts["best_loss"] is None else f", best loss {facts['best_loss']:.3f}"
        told = f"{facts['steps']} steps in {facts['seconds']:.0f} s{loss}"
        console.out().print(f"{escape(str(self.run.path))}: {told}")


def train_recipe(
    recipe: str,
    *,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    name: str | None = None,
    resume: bool = False,
    offline: bool = False,
) -> TrainResult:
    """Only the training stage of `retone run`; arguments as there."""
    settings = load_recipe(recipe, flags=flags, sets=sets)
    found = create(
        settings, name=name or find_recipe(recipe).stem, fresh=not resume, offline=offline
    )
    console.note(f"{found.path}: {found.told}")
    if found.status in ("new", "interrupted"):
        train(found, offline=offline)
    return TrainResult(found)


def _type_told(resolved: Resolved) -> str:
    chosen = resolved.chosen.get("model.dtype")
    because = chosen.because if chosen else "the recipe says so"
    return f"computed in {resolved.recipe.model.dtype}: {because}"


def _listener(
    tick: console.Ticker, minutes: float | None, ask: Callable[[int], None]
) -> Callable[[dict[str, Any]], None]:
    """Turns lines of metrics.jsonl into the live line; asks the model at each evaluation loss."""
    seen: dict[str, float] = {}

    def listen(line: dict[str, Any]) -> None:
        if "eval_loss" in line:
            seen["eval"] = line["eval_loss"]
            ask(line["step"])
        detail = console.training_detail(line, seen.get("eval"))
        if line["total_steps"] is None:
            done, total = int(line["seconds"]), int(60 * (minutes or 0))
        else:
            done, total = line["step"], line["total_steps"]
        tick("training", done, total, f"step {line['step']}  {detail}")

    return listen
