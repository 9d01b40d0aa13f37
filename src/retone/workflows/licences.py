"""What the base model's licence asks of those who give a tuned model away."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from safetensors import safe_open

from retone.errors import InputError
from retone.models.locate import LocatedModel
from retone.run_dir import Run, read_json

# What names of an adapter's tensors have in them that are no weights of the base.
OWN = (".lora_", ".ia3_", ".prompt_embeddings", ".bottleneck_")


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


def base_licence(run: Run, said: str | None = None, base: LocatedModel | None = None) -> Licence:
    """The licence of the base model's weights.

    Args:
        run: a run.
        said: what the user knows it to be; for a base that the table of models does not have.
        base: whose weights an export holds, where that is not the run's own base.

    Raises:
        InputError: the user says another licence than the one that is known.
    """
    known = base.licence if base else read_json(run.manifest)["base"]["licence"]
    found, given = _named(known), _named(said)
    if found.name and given.name and found != given:
        raise InputError(
            "the base model has another licence",
            f"--licence {given.name}, and {run.name} is made from a model under {found.name}",
            "leave --licence out",
            "other-licence",
        )
    return found if found.name else given


def _named(name: str | None) -> Licence:
    """The row of a licence by its name or the hub's, in any case of letters."""
    wanted = (name or "").strip()
    rows = licence_table().values()
    same = (row for row in rows if wanted.lower() in (row.name.lower(), row.hub))
    return next(same, Licence(wanted))


def require_passing_on(
    run: Run,
    kind: str,
    licence: Licence,
    model: str,
    said: str | None = None,
    base: LocatedModel | None = None,
) -> None:
    """Refuse to give base weights away where their licence does not allow it (InputError).

    An adapter is free of that where it holds no weights of the base; the name that a licence asks
    of a model made from the base, it asks of adapters too.

    Args:
        run: whose base it is.
        kind: adapter, merged, gguf, or lora (an adapter as GGUF).
        licence: of the base.
        model: the name it will have, without its owner's.
        said: the licence that the user named, who answers for one that is not in the table.
        base: as `base_licence`.
    """
    name = base.name if base else read_json(run.manifest)["base"]["name"]
    held = "" if kind not in ("adapter", "lora") else _base_tensor(run)
    if held is not None:
        _require_allowed(run, licence, name, held, said)
    if not model.lower().startswith(licence.begins.lower()):
        better = f"{licence.begins}-{model}"
        raise InputError(
            f'the name of a model made from this base has to begin with "{licence.begins}"',
            f"{model}: {name} is under {licence.name}, {licence.source}",
            f"call it {better}: on the hub --repo ORG/{better}, elsewhere "
            f"retone runs --rename {run.name} {better}",
            "licence-name",
        )


def _require_allowed(run: Run, licence: Licence, base: str, held: str, said: str | None) -> None:
    what, alone = base, f"push the adapter alone: retone export {run.name} --to hub"
    alone += " --repo ORG/NAME --as adapter"
    if held:
        what = f"{base}, whose {held} the adapter holds"
        alone = "train an adapter without whole matrices, biases and new tokens (method.train_also)"
    no_changes = "nd" in re.split(r"[^a-z]+", licence.name.lower())
    if no_changes or (licence.known and not licence.redistribute):
        raise InputError(
            "the base model's licence does not allow giving away what was changed",
            f"{what}: {licence.name}{f', {licence.source}' if licence.known else ''}",
            alone,
            "licence-forbids",
        )
    if not licence.known and not said:
        raise InputError(
            "it is not known whether the base model's weights may be given away",
            f"{what}: licence {licence.name or 'unknown'}",
            f"look it up on the model's page, then: --licence SPDX-NAME; or {alone}",
            "unknown-licence",
        )


def _base_tensor(run: Run) -> str | None:
    """A tensor of the run's adapter that holds weights of the base, or None.

    Whole matrices (`method.train_also`), biases and rows of added tokens are such weights.
    """
    for file in run.adapter.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for name in sorted(tensors.keys()):
                if not any(own in f".{name}" for own in OWN):
                    return str(name)
    return None
