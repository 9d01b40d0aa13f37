"""What the base model's licence asks of those who give a tuned model away."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from retone.errors import InputError
from retone.run_dir import Run, read_json


@dataclass(frozen=True)
class Licence:
    """A row of tables/licences.toml, whose header says what each field means.

    A licence that is not in the table has a name alone: `known` is false, and nothing is said of
    what it allows.
    """

    name: str
    hub: str = "other"
    redistribute: bool = False
    begins: str = ""
    notice: str = ""
    demands: str = ""
    link: str = ""
    source: str = ""

    @property
    def known(self) -> bool:
        """Whether the table has it."""
        return bool(self.source)

    def metadata(self) -> dict[str, Any]:
        """The fields of a card's header: the hub has names of its own, and one for all others."""
        if self.known:
            return {"license": self.hub}
        if not self.name:
            return {"license": "unknown"}
        return {"license": "other", "license_name": re.sub(r"[^a-z0-9.]+", "-", self.name.lower())}


@cache
def licence_table() -> dict[str, Licence]:
    """The rows of tables/licences.toml by name."""
    text = (files("retone") / "tables" / "licences.toml").read_text(encoding="utf-8")
    return {name: Licence(name, **row) for name, row in tomllib.loads(text).items()}


def base_licence(run: Run, said: str | None = None) -> Licence:
    """The licence of the run's base model.

    Args:
        run: a run.
        said: what the user knows it to be; for a base that the table of models does not have.

    Raises:
        InputError: the user says another licence than the one that is known.
    """
    recorded = read_json(run.manifest)["base"]["licence"]
    found, given = _named(recorded), _named(said)
    if found.name and given.name and found != given:
        raise InputError(
            "the base model has another licence",
            f"--licence {given.name}, and {run.name} was tuned from a model under {found.name}",
            "leave --licence out",
            "other-licence",
        )
    return found if found.name else given


def _named(name: str | None) -> Licence:
    wanted = (name or "").strip()
    rows = licence_table().values()
    return next((row for row in rows if row.name.lower() == wanted.lower()), Licence(wanted))


def require_passing_on(
    run: Run, kind: str, licence: Licence, model: str, said: str | None = None
) -> None:
    """Refuse to give base weights away where their licence does not allow it (InputError).

    An adapter holds no weights of the base, and is never refused.

    Args:
        run: whose base it is.
        kind: adapter, merged, gguf, or lora (an adapter as GGUF).
        licence: of the base.
        model: the name it will have, without its owner's.
        said: the licence that the user named, who answers for one that is not in the table.
    """
    if kind in ("adapter", "lora"):
        return
    base: Mapping[str, Any] = read_json(run.manifest)["base"]
    if not licence.known and not said:
        raise InputError(
            "it is not known whether the base model's weights may be given away",
            f"{base['name']}: licence {licence.name or 'unknown'}",
            "look it up on the model's page, then: --licence SPDX-NAME; or push the adapter alone: "
            f"retone export {run.name} --to adapter",
            "unknown-licence",
        )
    if licence.known and not licence.redistribute:
        raise InputError(
            "the base model's licence does not allow giving away what was changed",
            f"{base['name']}: {licence.name}, {licence.source}",
            f"push the adapter alone: retone export {run.name} --to adapter",
            "licence-forbids",
        )
    if not model.lower().startswith(licence.begins.lower()):
        raise InputError(
            f'the name of a model made from this base has to begin with "{licence.begins}"',
            f"{model}: {base['name']} is under {licence.name}, {licence.source}",
            f"name the repository {licence.begins}-{model}",
            "licence-name",
        )
