"""`retone export`: a run in forms that other programs run, each held against the run first."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.errors import InputError
from retone.evaluation.gate import Check, Gate, Said, limits_of
from retone.evaluation.numbers import size
from retone.models.adapters import read_part
from retone.models.foreign import check_fits
from retone.models.gguf_architectures import read_architecture
from retone.models.gguf_export import convert_with_checkout, write_gguf
from retone.models.gguf_lora import write_lora_gguf
from retone.models.gguf_quants import kind_named
from retone.models.loading import load_base
from retone.models.locate import LocatedModel, locate
from retone.models.merging import merged_model, require_mergeable, require_unpacked, save_model
from retone.models.methods import METHODS
from retone.planning import probe_machine
from retone.run_dir import Run, read_json, require_new, whole_folder, write_json
from retone.workflows.adopt import run_or_adapter
from retone.workflows.card import hide_places, write_card
from retone.workflows.export_gate import (
    adapter_gate,
    hear,
    llama_gate,
    merged_gate,
    weights_check,
)
from retone.workflows.licences import base_licence
from retone.workflows.load import Opened, open_run
from retone.workflows.report import write_report

LORA_BASE = "f16"  # how the base is stored that a GGUF adapter is tried on: finer than bf16


@dataclass(frozen=True)
class Order:
    """What is to be exported, and how.

    Attributes:
        opened: the run.
        base: what the adapter is merged into.
        kind: of a GGUF file's weights.
        dtype: of merged weights.
        checkout: of llama.cpp, whose converter is to write GGUF files; None for our own.
        licence: of the base, as the user says.
        notes: what is to be told besides; filled on the way.
        checks: made while the merged model was there; filled on the way.
    """

    opened: Opened
    base: LocatedModel
    kind: str
    dtype: str
    checkout: Path | None
    licence: str | None
    notes: list[str] = field(default_factory=list)
    checks: dict[str, Check] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The run."""
        return self.opened.run

    @property
    def method(self) -> str:
        """What it trained."""
        return self.opened.resolved.recipe.method.kind

    @property
    def other_base(self) -> LocatedModel | None:
        """The base that `--base` names; None for the run's own."""
        return None if self.base is self.opened.base else self.base

    @property
    def another_base(self) -> bool:
        """Whether other weights are exported than those that were trained upon."""
        packed = self.opened.resolved.recipe.model.quantization != "none"
        return packed or self.base.sha256 != self.opened.base.sha256

    def limits(self, kind: str) -> dict[str, float]:
        """What the gate asks of a way of storing weights."""
        return limits_of(kind, another_base=self.another_base)

    @contextmanager
    def merged(self, beside: Path) -> Iterator[Path]:
        """The whole tuned model in float32, for as long as the block takes."""
        with tempfile.TemporaryDirectory(prefix=".merged-", dir=beside.parent) as place:
            self.save_merged(Path(place), "float32")
            yield Path(place)

    def save_merged(self, folder: Path, dtype: str) -> None:
        """Write the whole tuned model."""
        opened, run = self.opened, self.run
        tokens = len(opened.tokenizer)
        if METHODS[self.method].saved_as == "model":
            model = load_base(run.model, dtype="float32", device="cpu", tokens=tokens)
        else:
            model = merged_model(self.base.path, run.adapter, tokens=tokens)
        stops = sorted(opened.template.stop_ids)
        save_model(model, opened.tokenizer, opened.template.text, stops, folder, dtype)

    def weights_check(self, folder: Path) -> Check:
        """Whether a folder of merged weights holds what was trained."""
        kind = read_json(folder / "config.json")["dtype"]
        limit = limits_of("float32" if kind == "float32" else "merged")["weights"]
        if METHODS[self.method].saved_as == "model":
            return weights_check(folder, self.run.model, None, limit)
        return weights_check(folder, self.base.path, self.run.adapter, limit)


@dataclass(frozen=True)
class Form:
    """A form that a run can take.

    Attributes:
        check: refuses runs that cannot take it (InputError).
        write: puts it into an empty folder.
        gate: runs what was written, and compares.
    """

    check: Callable[[Order], None]
    write: Callable[[Order, Path], None]
    gate: Callable[[Order, Path, list[Said], console.Ticker], Gate]


@dataclass(frozen=True)
class Exported:
    """What was exported, and what the gate said of it; without a path where it was blocked."""

    run: Run
    name: str
    path: Path | None
    gate: Gate
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """No check failed."""
        return self.gate.ok

    def as_json(self) -> dict[str, Any]:
        """The object of `retone export --json`."""
        path = None if self.path is None else str(self.path)
        return {"run": str(self.run.path), "name": self.name, "path": path, "ok": self.ok,
                "gate": self.gate.as_json(), "notes": list(self.notes)}  # fmt: skip

    def show(self) -> None:
        """Print the gate, the files and their sizes."""
        to = console.out()
        for name, found, limit, outcome, told in self.gate.rows():
            numbers = f"{found:>9}  asked {limit:<7}" if found else ""
            to.print(escape(f"{outcome:<8}{name:<11}{numbers}  {told}"), soft_wrap=True)
        for note in self.notes:
            to.print(escape(note), soft_wrap=True)
        if self.path is None:
            packed = self.name.startswith("gguf-q") and self.name != "gguf-q8_0"
            finer = "; --type q8_0 or bf16 rounds less" if packed else ""
            to.print(f"a check failed, so nothing was kept{finer}", style="bold")
            return
        for file in sorted(file for file in self.path.rglob("*") if file.is_file()):
            to.print(f"  {size(file.stat().st_size):>8}  {escape(file.name)}", soft_wrap=True)
        to.print(escape(str(self.path)), soft_wrap=True)


def export(
    run: str = "latest",
    *,
    to: str,
    output: Path | None = None,
    kind: str = "q8_0",
    dtype: str | None = None,
    base: str | None = None,
    checkout: Path | None = None,
    licence: str | None = None,
    offline: bool = False,
) -> Exported:
    """Write a run in another form, run that form by its own engine, and keep it if it is the same.

    Args:
        run: a run, its directory, its name, `latest`, or the folder of an adapter.
        to: a name of `FORMS`.
        output: the folder to make; RUN/exports/NAME when left out.
        kind: of a GGUF file's weights, such as bf16, q8_0 or q4_k_m.
        dtype: of merged weights; the run's own when left out.
        base: another model to merge into, such as the original of packed weights.
        checkout: of llama.cpp, for architectures that its converter alone knows.
        licence: of the base, where the table of models does not have it.
        offline: never ask a network.

    Raises:
        InputError: the run cannot take this form.
        MachineError: a package is missing, or the disk is full.
    """
    form = FORMS[to]
    if output:
        require_new(output)
    order = _order(run, kind, dtype, base, checkout, licence, offline=offline)
    base_licence(order.run, licence, order.other_base)  # refuses another than is known
    form.check(order)
    name = f"gguf-{kind}" if to == "gguf" else to
    place = output or order.run.exports / name
    path: Path | None = place
    with console.ticker() as tick:
        said = hear(order.opened, tick)
        try:
            with whole_folder(place) as staging:
                tick("writing", 0, 1)
                form.write(order, staging)
                tick("writing", 1, 1)
                gate = form.gate(order, staging, said, tick)
                if not gate.ok:
                    raise _Blocked
                write_card(order.run, to, gate.as_json(), staging, licence, base=order.other_base)
        except _Blocked:
            path = None
            if output is None:
                shutil.rmtree(place, ignore_errors=True)  # an older one is not it
    found = Exported(order.run, name, path, gate, tuple(order.notes))
    _keep(found)
    return found


class _Blocked(Exception):
    """The gate failed: what was written is not to appear."""


def _order(
    run: str, kind: str, dtype: str | None, base: str | None, checkout: Path | None,
    licence: str | None, *, offline: bool,
) -> Order:  # fmt: skip
    found = run_or_adapter(run, offline=offline)
    if not found.tuned.is_dir():
        raise InputError(
            f'the run "{found.name}" is not trained yet', f"status {found.status}",
            "retone run RECIPE   (the same recipe resumes it)", "not-trained",
        )  # fmt: skip
    opened = open_run(found, offline=offline)
    with console.ticker() as tick:
        into = locate(base, offline=offline, progress=tick) if base else opened.base
    stored = dtype or opened.resolved.recipe.model.dtype
    return Order(opened, into, kind, stored, checkout, licence)


def _keep(found: Exported) -> None:
    """Note the gate in the run, and draw its report again."""
    run = found.run
    write_json(
        run.exports / f"{found.name}.json",
        {"created": datetime.datetime.now(datetime.UTC).isoformat(), **found.as_json()},
    )
    if run.status == "finished":
        write_report(run, run.evaluation(), run.report)


# --------------------------------------------------------------------------------------- the forms


def _check_adapter(order: Order) -> None:
    if METHODS[order.method].saved_as != "adapter":
        raise InputError(
            "the run has no adapter of peft's form", f"{order.run.name}: {order.method}",
            f"retone export {order.run.name} --to merged"
            if METHODS[order.method].saved_as == "model"
            else f"its own folder is {order.run.tuned}; retone loads it",
            "no-adapter",
        )  # fmt: skip
    _refuse_other_base(order, "an adapter holds no base")


def _refuse_other_base(order: Order, why: str) -> None:
    if order.other_base:
        raise InputError(
            "--base is what an adapter is merged into", why, "leave --base out", "no-merge"
        )


def _check_lora(order: Order) -> None:
    _check_adapter(order)
    read_part(order.run.adapter)  # refuses what is more than plain LoRA
    read_architecture(order.base.path)


def _write_adapter(order: Order, folder: Path) -> None:
    for file in order.run.adapter.iterdir():  # no links: others write into their folders in place
        shutil.copyfile(file, folder / file.name)
    # Plain `generate` ends where the base's own configuration says, which may be elsewhere.
    stops = sorted(order.opened.template.stop_ids)
    write_json(folder / "generation_config.json", {"eos_token_id": stops, "do_sample": False})
    hide_places(folder, order.run)


def _gate_adapter(order: Order, folder: Path, said: list[Said], tick: console.Ticker) -> Gate:
    return adapter_gate(order.opened, folder, said, tick, limits_of("adapter"))


def _check_merged(order: Order) -> None:
    require_mergeable(order.run, order.method)
    require_unpacked(order.base.path)
    if METHODS[order.method].saved_as == "model":
        _refuse_other_base(order, f"{order.run.name} trained the whole model")
    elif order.other_base:
        check_fits(order.run.adapter, order.base, len(order.opened.tokenizer))
    if order.another_base:
        order.notes.append(
            "The adapter was trained on other weights than these (packed ones, or another copy), "
            "so the limits of the gate are wider: see its drift."
        )
    elif order.base.note:
        order.notes.append(
            f"{order.base.note} --base {order.base.repo or 'ORG/NAME'} merges into the original "
            "instead, and measures how far that drifts."
        )


def _write_merged(order: Order, folder: Path) -> None:
    order.save_merged(folder, order.dtype)


def _gate_merged(order: Order, folder: Path, said: list[Said], tick: console.Ticker) -> Gate:
    exact = order.dtype == "float32" and probe_machine().device == "cpu"
    limits = order.limits("float32" if exact else "merged")
    gate = merged_gate(order.opened, folder, said, tick, limits, order.dtype)
    gate.checks["weights"] = order.weights_check(folder)
    return gate


def _check_gguf(order: Order) -> None:
    kind_named(order.kind)
    _check_merged(order)
    if not order.checkout:
        read_architecture(order.base.path)


def _gguf_of(order: Order, folder: Path) -> Path:
    return folder / f"{order.run.name}-{order.kind}.gguf"


def _write_gguf(order: Order, folder: Path) -> None:
    file, template = _gguf_of(order, folder), order.opened.template.text
    licence = base_licence(order.run, order.licence, order.other_base).name or None
    with order.merged(folder) as merged:
        order.checks["weights"] = order.weights_check(merged)
        if order.checkout:
            convert_with_checkout(order.checkout, merged, file, order.kind)
            return
        types = write_gguf(
            merged, file, order.kind, template=template, name=order.run.name, licence=licence
        )
    counted = ", ".join(f"{count} {name}" for name, count in types.items())
    order.notes.append(f"Tensors by type: {counted}.")


def _gate_gguf(order: Order, folder: Path, said: list[Said], tick: console.Ticker) -> Gate:
    file = _gguf_of(order, folder)
    gate = llama_gate(order.opened, file, said, tick, limits=order.limits(order.kind))
    gate.checks.update(order.checks)
    return gate


def _lora_of(order: Order, folder: Path) -> Path:
    return folder / f"{order.run.name}-lora.gguf"


def _write_lora(order: Order, folder: Path) -> None:
    file = _lora_of(order, folder)
    write_lora_gguf(order.run.adapter, order.base.path, file, name=order.run.name)


def _gate_lora(order: Order, folder: Path, said: list[Said], tick: console.Ticker) -> Gate:
    """On the base as a GGUF file, which is made for it and thrown away."""
    opened = order.opened
    with tempfile.TemporaryDirectory(prefix=".base-", dir=folder.parent) as place:
        base = Path(place) / "base.gguf"
        write_gguf(
            order.base.path, base, LORA_BASE, template=opened.template.text, name=order.base.name
        )
        limits = order.limits("lora")
        return llama_gate(opened, base, said, tick, limits=limits, lora=_lora_of(order, folder))


FORMS: dict[str, Form] = {
    "adapter": Form(_check_adapter, _write_adapter, _gate_adapter),
    "merged": Form(_check_merged, _write_merged, _gate_merged),
    "gguf": Form(_check_gguf, _write_gguf, _gate_gguf),
    "lora": Form(_check_lora, _write_lora, _gate_lora),
}
