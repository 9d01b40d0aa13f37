"""`retone import`: the training YAML of Axolotl or LlamaFactory as a recipe."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import Repr
from textwrap import wrap
from typing import Any

import yaml

from retone import console
from retone.config import METHOD_FIELDS, Recipe, SourceSection
from retone.errors import InputError
from retone.recipe_file import complete_recipe, toml_value
from retone.run_dir import write_whole
from retone.workflows.import_data import SOURCES, UNKNOWN, Draft
from retone.workflows.import_fields import AXOLOTL, TOOLS, Tool, number, whole

MAX_BYTES = 1_000_000  # a training YAML has a few kilobytes; its reader takes seconds a megabyte
SHOWN_FIELDS = 8  # of the evidence
WIDTH = 98  # of comments
OFF: tuple[Any, ...] = (None, False, "", [], {})  # what is switched off needs no counterpart

_repr = Repr()  # bounds what is shown: YAML's aliases make values that are endless when written out
_repr.maxstring = _repr.maxother = 120
_repr.maxlist = _repr.maxdict = 12
_repr.maxlevel = 3


@dataclass(frozen=True)
class Imported:
    """A translated recipe.

    Attributes:
        recipe: TOML text.
        tool: which tool the YAML is of.
        untranslated: (field, value, why or what to do instead) of what has no counterpart.
        path: where the recipe was written; None: nowhere.
    """

    recipe: str
    tool: str
    untranslated: list[tuple[str, Any, str]]
    path: Path | None

    def as_json(self) -> dict[str, Any]:
        """The object of `retone import --json`."""
        rows = [{"field": name, "value": v, "why": why} for name, v, why in self.untranslated]
        return {"recipe": self.recipe, "from": self.tool, "untranslated": rows}

    def show(self) -> None:
        """Print the recipe or where it is; what has no counterpart goes to stderr."""
        if self.path is None:
            console.out().print(self.recipe, markup=False, soft_wrap=True, end="")
        else:
            told = f"wrote {self.path}   next: retone inspect {self.path}"
            console.out().print(told, markup=False, soft_wrap=True)
        if self.untranslated:
            console.note(f"without a counterpart: {len(self.untranslated)}")
        for name, value, why in self.untranslated:
            console.err.print(f"  {name}: {value}   {why}", markup=False, soft_wrap=True)


def import_recipe(path: Path, *, output: Path | None = None) -> Imported:
    """Translate a training YAML; the recipe is written to `output`, never over a file.

    Raises InputError: the YAML cannot be read or is of no known tool, values are wrong (all are
    named at once), or the output cannot be taken.
    """
    if output is not None and output.suffix != ".toml":
        raise InputError(
            "a recipe's name ends in .toml", str(output), f"-o {output}.toml", "not-toml"
        )
    if output is not None and output.exists():
        raise InputError("the file is there already", str(output), "choose another name", "exists")
    given = read_yaml(path)
    tool, evidence = detect_tool(given, path)
    console.note(f"{path}: {evidence}")
    draft = Draft(path, output.parent if output else Path.cwd())
    translate(given, tool, draft)
    if draft.problems:
        raise InputError(
            "the YAML has values that cannot be used",
            f"{path}: {'; '.join(draft.problems)}",
            "mend them in the YAML",
            "wrong-yaml",
        )
    recipe = "\n".join(recipe_lines(draft, tool)) + "\n"
    complete_recipe(tomllib.loads(recipe), f"the recipe of {path}")
    if output is not None:
        write_whole(output, recipe)
    rows = [(name, _bounded(value), why) for name, value, why in draft.untranslated]
    return Imported(recipe, tool.name, rows, output)


def read_yaml(path: Path) -> dict[str, Any]:
    """The fields of a training YAML; fields without a value are left out."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InputError(
                "the file is too large for a training YAML",
                f"{path}: more than {MAX_BYTES:,} bytes",
                "give the YAML that names the model and the data, not the data",
                "too-large",
            )
        found = yaml.safe_load(data.decode("utf-8-sig"))
    except OSError as error:
        raise InputError(
            "the YAML cannot be read", f"{path}: {error.strerror}", "check the path", "no-file"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(
            "the file is not YAML",
            f"{path}: {_yaml_problem(error)}",
            "mend that line",
            "broken-yaml",
        ) from error
    if not isinstance(found, dict) or not found:
        kind = {type(None): "nothing", dict: "no fields"}.get(type(found), type(found).__name__)
        raise InputError(
            "a training YAML has fields at the top",
            f"{path}: {kind}",
            "give the file that the tool's own train command takes",
            "not-fields",
        )
    return {str(name): value for name, value in found.items() if value is not None}


def detect_tool(given: Mapping[str, Any], path: Path) -> tuple[Tool, str]:
    """Which tool a YAML is of, by the fields that only one of them has, and the evidence."""
    shared = set.intersection(*(tool.names for tool in TOOLS))
    marks = {tool.name: [f for f in given if f in tool.names - shared] for tool in TOOLS}
    best, other = sorted(TOOLS, key=lambda tool: -len(marks[tool.name]))
    if len(marks[best.name]) == len(marks[other.name]):
        needed = "; ".join(f"{tool.name}: {tool.model}, {tool.data}" for tool in TOOLS)
        raise InputError(
            "the YAML is neither Axolotl's nor LlamaFactory's",
            f"{path}: fields {', '.join(list(given)[:SHOWN_FIELDS])}",
            f"give a training YAML of one of them ({needed})",
            "unknown-tool",
        )
    shown = marks[best.name][:SHOWN_FIELDS]
    more = (
        f" and {len(marks[best.name]) - len(shown)} more" if marks[best.name][len(shown) :] else ""
    )
    return best, f"{best.name}, by its fields {', '.join(shown)}{more}"


def translate(given: Mapping[str, Any], tool: Tool, draft: Draft) -> None:
    """Fill the draft: what is read together first, then field by field, then what is left."""
    left = {**tool.defaults, **given}
    SOURCES[tool.name](left, draft)
    found = {tool.model: tool.model in given, tool.data: draft.sources["train"] or draft.problems}
    draft.problems += [f"{name} is missing" for name, there in found.items() if not there]
    _read_batch(left, tool, draft)
    _read_length(left, tool, draft)
    _read_warmup(left, draft)
    for name, (target, convert) in tool.fields.items():
        value = left.pop(name, None)
        if value is None or (
            target == "data.eval_fraction" and draft.sources["test"] and not value
        ):
            continue  # nothing needs to be held out where there are test rows
        read = draft.read(name, value, convert)
        if read is not None and target in draft.values:
            draft.leave(name, value, f"{target} comes from {draft.notes[target]}")
        elif read is not None:
            draft.put(target, read, name if name in given else f"{tool.name}'s default")
    for name, value in left.items():
        agreed, why = tool.fixed.get(name, ((), UNKNOWN))
        if value not in agreed and not (name in tool.fixed and value in OFF):
            draft.leave(name, value, why or UNKNOWN)
    if tool is AXOLOTL and not given.get("adapter"):
        draft.put("method.kind", "full", "adapter is left out")
    if draft.values.get("train.optimizer") == "lion" and "train.beta2" not in draft.values:
        draft.put("train.beta2", 0.999, f"{tool.name}'s default")
    _keep_what_the_kind_uses(draft)


def _read_batch(left: dict[str, Any], tool: Tool, draft: Draft) -> None:
    """Rows a pass and passes a step -> rows a step."""
    micro = draft.read(tool.micro_batch, left.pop(tool.micro_batch), whole)
    steps = "gradient_accumulation_steps"
    passes = draft.read(steps, left.pop(steps), whole)
    if micro is not None and passes is not None:
        told = f"{tool.micro_batch} {micro} x {steps} {passes}, times the GPUs if there were more"
        draft.put("train.batch_size", micro * passes, told)
        draft.put("train.micro_batch_size", micro, tool.micro_batch)


def _read_length(left: dict[str, Any], tool: Tool, draft: Draft) -> None:
    """Steps or epochs; steps outrank epochs there."""
    epochs = draft.read(tool.epochs, left.pop(tool.epochs), number)
    steps = draft.read("max_steps", left.pop("max_steps", -1), whole)
    if steps is not None and steps > 0:
        draft.put("train.max_steps", steps, f"max_steps; it outranks {tool.epochs} {epochs}")
    elif epochs is not None:
        draft.put("train.epochs", epochs, tool.epochs)


def _read_warmup(left: dict[str, Any], draft: Draft) -> None:
    """Warm-up in steps, or as a share of the run."""
    given = left.pop("warmup_steps", None), left.pop("warmup_ratio", None)
    if given == (None, None):
        return
    steps = draft.read("warmup_steps", given[0] or 0, number) or 0
    share = steps if 0 < steps < 1 else draft.read("warmup_ratio", given[1] or 0, number) or 0
    if steps >= 1 or not share:
        draft.put("train.warmup_steps", round(steps), "warmup_steps")
    else:
        draft.put("train.warmup_steps", float(share), "warmup_ratio")


def _keep_what_the_kind_uses(draft: Draft) -> None:
    """Settings of LoRA that stand in the file of another method do nothing there either."""
    kind = draft.values.get("method.kind", "lora")
    if kind == "last_layers" and "method.layers" not in draft.values:
        draft.put("method.layers", 2, "LlamaFactory's default; head and norm are trained here too")
    for name, kinds in METHOD_FIELDS.items():
        value = draft.values.get(f"method.{name}")
        if value is not None and kind not in kinds:
            del draft.values[f"method.{name}"]
            draft.leave(draft.notes[f"method.{name}"], value, f"method.kind={kind} has no {name}")


def recipe_lines(draft: Draft, tool: Tool) -> Iterator[str]:
    """The recipe as TOML, in the order of its fields, with a note where a name or value changed."""
    yield _comment(f"Translated by retone import from {draft.yaml.name} of {tool.name}.")
    if draft.untranslated:
        names = ", ".join(name for name, _, _ in draft.untranslated)
        yield from map(_comment, wrap(f"Without a counterpart: {names}.", WIDTH))
    for section, info in Recipe.model_fields.items():
        fields = info.annotation.model_fields if info.annotation else ()
        present = [name for name in fields if f"{section}.{name}" in draft.values]
        if present:
            yield f"\n[{section}]"
        for name in present:
            line = f"{name} = {toml_value(draft.values[f'{section}.{name}'])}"
            note = draft.notes[f"{section}.{name}"]
            yield line if note == name else f"{line}   {_comment(note)}"
        for split in ("train", "test") if section == "data" else ():
            for source in draft.sources[split]:
                yield f"\n[[data.{split}]]"
                present = [name for name in SourceSection.model_fields if name in source]
                yield from (f"{name} = {toml_value(source[name])}" for name in present)


def _comment(told: str) -> str:
    """A comment of one line, whatever stands in the names and values it tells of."""
    return "# " + "".join(c if c.isprintable() else " " for c in told)


def _bounded(value: Any) -> Any:
    """A value as it is listed: short, and as JSON can say it."""
    if isinstance(value, bool | int | None) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return value if isinstance(value, str) and value.isprintable() else _repr.repr(value)


def _yaml_problem(error: Exception) -> str:
    """What is wrong, and in which line, of an error of the YAML reader."""
    if isinstance(error, RecursionError):
        return "nested too deeply"
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return str(error).splitlines()[0]
    return f"line {mark.line + 1}: {getattr(error, 'problem', None) or 'not YAML'}"
