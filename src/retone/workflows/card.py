"""The model card of a run: what the Hugging Face Hub shows of it, in the hub's own format.

Header: huggingface.co/docs/hub/model-cards; results as `model-index`, because the newer files
`.eval_results/` are for benchmarks that the hub itself holds. What people or models wrote is
escaped where it enters: it can neither end the header nor be read as Markdown or HTML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from pathlib import Path, PureWindowsPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from retone import __version__
from retone.config import BUNDLED, HUB, METHOD_FIELDS
from retone.evaluation.numbers import count, span
from retone.evaluation.statistics import Score
from retone.models.locate import LocatedModel
from retone.models.saving import BASE_FILE
from retone.run_dir import Run, read_json, write_json, write_whole
from retone.workflows.licences import Licence, base_licence
from retone.workflows.markdown import fenced, one_line, plain
from retone.workflows.voices import real_voices

CARD = "README.md"
NOTICE = "NOTICE"
MOST_METRICS = 4
RELATION = {
    "adapter": "adapter", "merged": "finetune", "gguf": "quantized", "lora": "adapter",
}  # fmt: skip
WHAT = {
    "adapter": "An adapter for {base}, tuned by {method}: weights that go on top of that model.",
    "merged": "{base}, tuned by {method}: a whole model.",
    "gguf": "{base}, tuned by {method}: a whole model as a GGUF file, for llama.cpp and its kin.",
    "lora": "An adapter for {base}, tuned by {method}, as a GGUF file: weights that llama.cpp puts "
    "on top of that model.",
}
# Settings of [train] that say how the weights came about, rather than how it was watched.
TOLD = ("epochs", "max_steps", "minutes", "batch_size", "optimizer", "learning_rate", "schedule",
        "warmup_steps", "weight_decay", "max_grad_norm", "neftune_alpha", "seed")  # fmt: skip


def write_card(
    run: Run,
    kind: str,
    gate: Mapping[str, Any] | None,
    folder: Path,
    said: str | None = None,
    *,
    base: LocatedModel | None = None,
) -> None:
    """Put README.md, and NOTICE where the base's licence asks for one, into an exported folder."""
    write_whole(folder / CARD, model_card(run, kind, gate, said, base=base))
    notice = base_licence(run, said, base).notice
    if notice:
        write_whole(folder / NOTICE, f"{notice}\nThe weights were changed by tuning.\n")


def model_card(
    run: Run,
    kind: str,
    gate: Mapping[str, Any] | None,
    said: str | None = None,
    *,
    base: LocatedModel | None = None,
) -> str:
    """The card as text: a YAML header, and Markdown.

    Args:
        run: a trained run; of one that is not evaluated the card says so.
        kind: adapter, merged, gguf, or lora (an adapter as GGUF).
        gate: check -> value, limit, ok (None: not run), told; None where nothing was checked.
        said: the base's licence, where the table of models does not have it.
        base: what the adapter was merged into, where that is not the run's own base.
    """
    manifest, resolved = read_json(run.manifest), read_json(run.resolved)
    recipe, licence = resolved["recipe"], base_licence(run, said, base)
    tuned_on = {**manifest["base"], "name": source_name(manifest["base"]["name"])}
    used = {**asdict(base), "name": source_name(base.name)} if base else tuned_on
    facts = {
        "title": run.name,
        "what": WHAT[kind].format(base=used["name"], method=recipe["method"]["kind"]),
        "base": used,
        "tuned_on": tuned_on,
        "licence": licence,
        "sources": data_sources(run),
        "voices": real_voices(run),
        "advice": _advice(run),
        "training": _training(run, resolved),
        "gate": [_check(name, row) for name, row in (gate or {}).items()],
        "template_note": _template_note(resolved),
        "system": fenced(recipe["data"]["system"]) if recipe["data"]["system"] else "",
        "ways": ways_to_use(run, kind, used, recipe),
        "version": __version__,
        "scores": [],
        "header": Markup(_header(run, kind, used["repo"], licence)),
    }
    if evaluated := _evaluation(run):
        folder, stored = evaluated
        facts |= _evidence(stored) | {"test": folder}
    text = _environment().get_template("card.md.jinja").render(facts)
    return re.sub(r"\n{3,}", "\n\n", text)


def _advice(run: Run) -> str:
    """What was said of the data before training; nothing of adapters from elsewhere."""
    diagnosis = run.data / "diagnosis.json"
    return str(read_json(diagnosis)["advice"]["says"]) if diagnosis.is_file() else ""


@cache
def _environment() -> Environment:
    """Every value that is not `Markup` is escaped on its way into the card."""
    return Environment(
        loader=PackageLoader("retone.evaluation", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else plain(value),
    )


def data_sources(run: Run) -> list[dict[str, Any]]:
    """What was trained and tested on: split, name (never a path), shape, rows, licence, sha256."""
    sources = read_json(run.ledger)["sources"]
    hashes = read_json(run.manifest)["data_sha256"]
    listed = [(split, sha256) for split in ("train", "test") for sha256 in hashes.get(split, [])]
    listed += [("", "")] * (len(sources) - len(listed))
    return [
        {
            "split": split,
            "name": source_name(source["path"]),
            "licence": _data_metadata(source["path"]).get("license", "not stated"),
            "sha256": sha256,
            **{key: source[key] for key in ("shape", "read", "used")},
        }
        for source, (split, sha256) in zip(sources, listed, strict=False)
    ]


def source_name(path: str) -> str:
    """A source as others may read it: of a file its name, of a dataset the dataset's."""
    # The names of Windows are cut at both kinds of slash, and lose the letter of their drive.
    return path if path.startswith((BUNDLED, HUB)) else PureWindowsPath(path).name


def hide_places(folder: Path, run: Run) -> None:
    """Name the base of tuned weights as the run does, without a path of this machine."""
    base = read_json(run.manifest)["base"]
    for file, field in (("adapter_config.json", "base_model_name_or_path"), (BASE_FILE, "name")):
        if (folder / file).is_file():
            named = base["repo"] or source_name(base["name"])
            write_json(folder / file, {**read_json(folder / file), field: named})


@cache
def _data_metadata(path: str) -> dict[str, Any]:
    """The header of the dataset's own README, of the datasets that come along."""
    from huggingface_hub import metadata_load

    if not path.startswith(BUNDLED):
        return {}
    name = path.removeprefix(BUNDLED).partition("/")[0]
    readme = Path(str(files("retone") / "datasets" / name / CARD))
    return (metadata_load(readme) if readme.is_file() else None) or {}


def _header(run: Run, kind: str, base: str | None, licence: Licence) -> str:
    from huggingface_hub import ModelCardData

    languages = {
        language
        for source in read_json(run.ledger)["sources"]
        for language in _data_metadata(source["path"]).get("language", [])
    }
    return ModelCardData(
        base_model=base,
        base_model_relation=RELATION[kind] if base else None,
        library_name=_library(run, kind),
        pipeline_tag="text-generation",
        language=sorted(languages) or None,
        tags=["retone", read_json(run.resolved)["recipe"]["method"]["kind"], kind],
        model_name=run.name,
        eval_results=_results(run) or None,
        **licence.metadata(),
    ).to_yaml()


def _library(run: Run, kind: str) -> str | None:
    """The library that loads these files; None for adapters that are retone's own."""
    if kind == "adapter":
        return "peft" if (run.adapter / "adapter_config.json").is_file() else None
    return "transformers" if kind == "merged" else None


def _results(run: Run) -> list[Any]:
    """The tuned model's scores, with their intervals in the names."""
    from huggingface_hub import EvalResult

    evaluated = _evaluation(run)
    if not evaluated:
        return []
    test, stored = evaluated
    names = {source["name"] for source in data_sources(run) if source["split"] != "train"}
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=one_line(read_json(run.manifest)["recipe"]),
            dataset_name=test
            or one_line(", ".join(sorted(names)))
            or "rows held out from the training files",
            dataset_split="test",
            metric_type=metric["name"],
            metric_name=_named(metric["label"], score),
            metric_value=round(score["value"], 4),
        )
        for metric in _shown_metrics(stored)
        if (score := stored["scores"]["tuned"][metric["name"]])["value"] is not None
    ]


def _evaluation(run: Run) -> tuple[str, dict[str, Any]] | None:
    """The scores of the run's own test rows, else the newest of another file's, and its name."""
    if run.scores.is_file():
        return "", read_json(run.scores)
    others = [*run.evaluation().glob("*/scores.json")]
    if not others:
        return None
    newest = max(others, key=lambda file: file.stat().st_mtime)
    return newest.parent.name.rpartition("-")[0], read_json(newest)


def _named(label: str, score: Mapping[str, Any]) -> str:
    """A metric with the interval of its score, for which the header has no field."""
    interval = ""
    if score["low"] is not None:
        interval = f", 95 % interval {score['low']:.4g} to {score['high']:.4g}"
    return f"{label}{interval}, n={score['n']}"


def _shown_metrics(stored: Mapping[str, Any]) -> list[dict[str, Any]]:
    scored = [one for one in stored["metrics"] if one["name"] in stored["scores"]["tuned"]]
    ordered = sorted(scored, key=lambda metric: metric["name"] != stored["headline"])
    return ordered[:MOST_METRICS]


def _evidence(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Verdict, table of scores, and what they do not show."""
    metrics = _shown_metrics(stored)
    rows = [
        {
            "label": candidate["label"],
            "cells": [_told(stored["scores"][candidate["name"]], metric) for metric in metrics],
        }
        for candidate in stored["candidates"]
        if candidate["name"] in stored["scores"]
    ]
    caution = ""
    if not stored["resolved"]:
        caution = "These rows do not show that tuning was worth it: see which candidates without "
        caution += "training do as well, and use the cheapest of them."
    elif " loses to " in stored["verdict"]:
        caution = "Tuning did harm here: use the candidate without training that is better."
    tested = max(score["n"] for score in stored["scores"]["tuned"].values())
    return {
        "verdict": stored["verdict"], "caution": caution, "metrics": metrics, "scores": rows,
        "notes": stored["notes"], "rows": count(tested),
    }  # fmt: skip


def _told(scores: Mapping[str, Any], metric: Mapping[str, Any]) -> str:
    return str(Score(**scores[metric["name"]])) if metric["name"] in scores else "no score"


def _check(name: str, row: Mapping[str, Any]) -> dict[str, str]:
    state = {True: "passed", False: "**failed**", None: "not run"}[row["ok"]]
    told = f"{state.strip('*')}: {row['told']}" if row["told"] else state.strip("*")
    return {"name": name.replace("_", " "), "told": told, **{
        key: "" if row[key] is None else f"{row[key]:.4g}"
        if isinstance(row[key], float) else str(row[key])
        for key in ("value", "limit")
    }}  # fmt: skip


def _training(run: Run, resolved: Mapping[str, Any]) -> dict[str, str]:
    """The settings that matter, how long it took, on what; of another tool's training little."""
    recipe, manifest, done = resolved["recipe"], read_json(run.manifest), read_json(run.training)
    kind = recipe["method"]["kind"]
    used = [name for name, kinds in METHOD_FIELDS.items() if kind in kinds]
    found = {"method": kind} | {f"method.{name}": recipe["method"][name] for name in used}
    for field in ("dtype", "quantization", "attention"):
        found[f"model.{field}"] = recipe["model"][field]
    share = done["parameters"]
    found["parameters trained"] = f"{count(share['trained'])} of {count(share['total'])}"
    if blended := manifest.get("blended"):
        parts = ", ".join(f"{one['weight']:g} of {one['run']}" for one in blended["parents"])
        found["blended"] = f"{blended['how']}: {parts}"
    elif done["seconds"] is None:
        found["trained by"] = "another tool: its settings and its data are not known"
    else:
        found |= {f"objective.{name}": value for name, value in recipe["objective"].items()}
        found |= {f"train.{name}": recipe["train"][name] for name in TOLD}
        found["steps"], found["time"] = count(done["steps"]), span(done["seconds"])
        found["machine"] = f"{manifest['machine']['name']} ({manifest['machine']['device']})"
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    found["software"] = f"retone {manifest['retone']}, {versions}"
    empty: tuple[Any, ...] = (None, "", [], {})
    return {
        name: f"{value:.6g}" if isinstance(value, float) else str(value)
        for name, value in found.items()
        if value not in empty
    }


def _template_note(resolved: Mapping[str, Any]) -> str:
    chosen = resolved["chosen"]
    origin = chosen["model.template"]["because"]
    note = f"Ask it through the chat template beside it ({origin}); another one spoils the answers."
    if "template.date" in chosen:
        note += (
            f" Where the template prints a date, it is always {chosen['template.date']['value']}."
        )
    return note


def ways_to_use(
    run: Run, kind: str, base: Mapping[str, Any], recipe: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Title and code of each way to run these files."""
    system = recipe["data"]["system"]
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": "Hello!"}]
    most = recipe["evaluate"]["max_new_tokens"] or 256
    ways = []
    if kind in ("gguf", "lora"):
        files = "-m FILE.gguf" if kind == "gguf" else "-m BASE.gguf --lora FILE.gguf"
        serve = f"llama-server --jinja --temp 0 {files}   # then: POST /v1/chat/completions"
        ways.append({"title": "With llama.cpp", "code": fenced(serve, "sh")})
    elif _library(run, kind):
        title = "With transformers" + (" and peft" if kind == "adapter" else "")
        code = _python(kind, base, turns, most, grown=_adds_tokens(run))
        ways.append({"title": title, "code": fenced(code, "python")})
    if kind == "merged":
        code = "retone run RECIPE --model ORG/NAME"
        ways.append({"title": "To tune it further with retone", "code": fenced(code, "sh")})
    return ways


def _adds_tokens(run: Run) -> bool:
    """Whether the adapter has embeddings of tokens that its base may not have."""
    file = run.adapter / "adapter_config.json"
    return file.is_file() and bool(read_json(file).get("trainable_token_indices"))


def _python(
    kind: str, base: Mapping[str, Any], turns: Sequence[Mapping[str, str]], most: int, *,
    grown: bool,
) -> str:  # fmt: skip
    """A program that answers one question, with every text as a Python literal."""
    where = json.dumps(base["repo"] or f"the folder of {base['name']}", ensure_ascii=False)
    if base["revision"]:
        where += f", revision={json.dumps(base['revision'])}"
    # peft does not read which tokens end an answer; the base's own may be others.
    load = [f"model = AutoModelForCausalLM.from_pretrained({where})",
            *([
                "rows = model.get_input_embeddings().num_embeddings",
                "model.resize_token_embeddings(max(rows, len(tokenizer)))",
            ] if grown else []),
            "model = PeftModel.from_pretrained(model, folder)",
            "model.generation_config = GenerationConfig.from_pretrained(folder)"]  # fmt: skip
    if kind == "merged":
        load = ["model = AutoModelForCausalLM.from_pretrained(folder)"]
    lines = [
        *(["from peft import PeftModel"] if kind == "adapter" else []),
        "from transformers import AutoModelForCausalLM, AutoTokenizer"
        + (", GenerationConfig" if kind == "adapter" else ""),
        "",
        'folder = "."  # this folder, or ORG/NAME',
        "tokenizer = AutoTokenizer.from_pretrained(folder)",
        *load,
        f"messages = {json.dumps(turns, ensure_ascii=False)}",
        "prompt = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"',
        ")",
        f"ids = model.generate(**prompt, max_new_tokens={most}, do_sample=False)",
        'print(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))',
    ]
    return "\n".join(lines)
