"""Recipes as TOML files: found, read, with flags laid over them, unknown names refused.

Defaults < recipe < flags. Loads without torch.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from retone.config import BUNDLED, HUB, STDIN, Recipe, Section
from retone.errors import InputError, nearest

# Flags that people type, and the field each one sets.
FLAGS: dict[str, str] = {
    "model": "model.name",
    "train": "data.train",
    "test": "data.test",
    "against": "data.against",
    "epochs": "train.epochs",
    "seed": "train.seed",
}


def bundled_recipes() -> dict[str, Path]:
    """Name -> file of the recipes that ship with the package."""
    folder = Path(str(resources.files("retone") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_recipe(name: str) -> Path:
    """The file behind a bundled name or a path; InputError with the nearest name otherwise."""
    bundled = bundled_recipes()
    if name in bundled:
        return bundled[name]
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path
    raise InputError(
        f'there is no recipe "{name}"',
        f"{'no such file' if path.suffix == '.toml' else 'not a bundled name'}"
        f"{nearest(name, bundled)}; bundled: {', '.join(bundled)}",
        "retone new my_style.toml --from yoda   (writes a recipe to start from)",
        "unknown-recipe",
    )


def load_recipe(
    name: str, *, flags: Mapping[str, Any] | None = None, sets: Sequence[str] = ()
) -> Recipe:
    """Read a recipe, lay flags and `--set section.field=value` over it, and check everything.

    Data paths come back absolute (relative ones belong to the recipe's folder, those given as
    flags to the current one). Raises InputError that names every wrong field at once.
    """
    path = find_recipe(name)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            "the recipe is not valid TOML", f"{path}: {error}", "mend that line", "broken-recipe"
        ) from error
    _anchor_paths(values, path.parent)
    return complete_recipe(values, str(path), flags=flags, sets=sets)


def complete_recipe(
    values: dict[str, Any],
    where: str,
    *,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> Recipe:
    """The recipe of TOML `values` with flags and sets laid over them; `where` is for messages."""
    overrides = [(FLAGS[flag], value) for flag, value in (flags or {}).items() if value is not None]
    overrides += [_parse_set(item) for item in sets]
    for field, value in overrides:
        _override(values, field, value)
    _anchor_paths(values, Path.cwd())
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(
            "the recipe has fields that cannot be used",
            f"{where}: " + "; ".join(explain(item, Recipe) for item in error.errors()),
            "mend them in the recipe, or override with --set section.field=value",
            "wrong-recipe",
        ) from error


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the paths of a recipe absolute, in place: its data, and a template that is a file."""
    model, data = values.get("model"), values.get("data")
    template = model.get("template") if isinstance(model, dict) else None
    if isinstance(template, str) and Path(template).suffix:
        values["model"]["template"] = _anchored(template, folder)
    adapter = model.get("adapter") if isinstance(model, dict) else None
    if isinstance(adapter, str) and (folder / Path(adapter).expanduser()).is_dir():
        values["model"]["adapter"] = _anchored(adapter, folder)
    if not isinstance(data, dict):
        return
    for key in ("train", "test", "against"):
        value = data.get(key)
        if isinstance(value, str):
            data[key] = _anchored(value, folder)
        elif isinstance(value, list):
            data[key] = [_anchored_source(source, folder) for source in value]


def _anchored_source(source: Any, folder: Path) -> Any:
    if isinstance(source, str):
        return _anchored(source, folder)
    if isinstance(source, dict) and isinstance(source.get("path"), str):
        return {**source, "path": _anchored(source["path"], folder)}
    return source


def _anchored(path: str, folder: Path) -> str:
    if not path or path == STDIN or path.startswith((BUNDLED, HUB)):
        return path
    # Not `resolve`: it fails on a loop of links, which the reader explains better.
    return os.path.abspath(folder / Path(path).expanduser())


def _parse_set(item: str) -> tuple[str, Any]:
    """`train.epochs=2` -> ("train.epochs", 2.0); the value is read as TOML, else taken as text."""
    field, equals, text = item.partition("=")
    if not equals or "." not in field:
        raise InputError(
            "--set needs section.field=value", repr(item), "--set train.epochs=2", "wrong-set"
        )
    try:
        return field.strip(), tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return field.strip(), text


def _override(values: dict[str, Any], field: str, value: Any) -> None:
    section, _, key = field.partition(".")
    target = values.setdefault(section, {})
    if isinstance(target, dict):
        if key in ("epochs", "max_steps", "minutes"):  # a flag replaces the recipe's run length
            for other in ("epochs", "max_steps", "minutes"):
                target.pop(other, None)
        target[key] = value


def explain(item: Any, root: type[BaseModel]) -> str:
    """One pydantic finding in a file that `root` describes, as `section.field: what is wrong`."""
    place = [str(part) for part in item["loc"]]
    field = ".".join(place)
    if item["type"] == "extra_forbidden":
        return f"unknown field {field}{nearest(place[-1], _siblings(place, root))}"
    if item["type"] == "missing":
        return f"{field} is required"
    message = item["msg"].removeprefix("Value error, ")
    found = (
        f" (found {item['input']!r})" if item["type"] != "value_error" or item["loc"][1:] else ""
    )
    return f"{field}: {message}{found}" if field else message


def _siblings(place: list[str], root: type[BaseModel]) -> list[str]:
    """The field names that exist where an unknown one was found."""
    if len(place) == 1:
        return list(root.model_fields)
    section = root.model_fields.get(place[0])
    model = section.annotation if section else None
    return (
        list(model.model_fields) if isinstance(model, type) and issubclass(model, Section) else []
    )


def describe_fields() -> list[tuple[str, str, str, str]]:
    """(field, type, default, sentence) of every field, for --help and the docs."""
    rows = []
    for section, info in Recipe.model_fields.items():
        model = info.annotation
        assert isinstance(model, type)
        assert issubclass(model, Section)
        for name, field in model.model_fields.items():
            kind = str(model.__annotations__[name])
            default = (
                "required"
                if field.is_required()
                else repr(field.get_default(call_default_factory=True))
            )
            rows.append((f"{section}.{name}", kind, default, field.description or ""))
    return rows


def toml_value(value: Any) -> str:
    """A value of a recipe as TOML: text, numbers, lists, and tables of plain names."""
    if isinstance(value, dict):
        pairs = [f"{name} = {toml_value(inner)}" for name, inner in value.items()]
        return f"{{ {', '.join(pairs)} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, str):  # JSON's escapes are TOML's, but for one character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
