"""`retone inspect`: row shapes, the token ledger, findings, advice, trained tokens."""

from __future__ import annotations

import datetime
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.batch import EncodedRow
from retone.config import Recipe
from retone.data.cleaning import Cleaned, Kind, cleaned_lines
from retone.data.collecting import read_samples
from retone.data.formats import Sample
from retone.data.private import veiled
from retone.data.sources import BadRows
from retone.errors import InputError
from retone.evaluation.data_page import DataReport, render_data_page
from retone.recipe_file import bundled_recipes, complete_recipe, load_recipe
from retone.run_dir import whole_file, write_whole
from retone.workflows.create import Prepared, prepare
from retone.workflows.diagnosis import Diagnosis, allowed, diagnose

PAGE_ROWS = 4  # whose tokens stand on the page
SHOWN_CHANGES = 10


@dataclass(frozen=True)
class Inspected:
    """What training would read, and what is wrong with it."""

    prepared: Prepared
    diagnosis: Diagnosis
    shown: int

    @property
    def ok(self) -> bool:
        """False where a finding stands that would stop a run."""
        return not self.diagnosis.errors

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The ledger: one entry for each source, those that are trained on first."""
        found: list[dict[str, Any]] = self.prepared.data.ledger["sources"]
        return found

    def as_json(self) -> dict[str, Any]:
        """The object of `retone inspect --json`."""
        totals = self.diagnosis.totals
        return {
            "sources": self.sources,
            "tokens": {name: totals[name] for name in ("trained", "masked", "cut")},
            **self.diagnosis.as_json(),
            "verdict": self.verdict,
        }

    @property
    def verdict(self) -> str:
        """One sentence."""
        count = {
            name: sum(source[name] for source in self.sources)
            for name in ("read", "used", "validated", "tested")
        }
        trained = count["used"] - count["validated"] - count["tested"]
        left = count["read"] - count["used"]
        errors = len(self.diagnosis.errors)
        return (
            f"{trained} of {count['read']} samples are trained on"
            + (f"; {left} {'is' if left == 1 else 'are'} left out" if left else "")
            + f"; {count['validated']} validate, {count['tested']} test"
            + (f"; {errors} error{'' if errors == 1 else 's'} to mend first" if errors else "")
        )

    def page(self, title: str) -> str:
        """The same as a page of HTML."""
        rows = self.prepared.data.rows("train")[:PAGE_ROWS]
        told = self.diagnosis.as_json()
        data = DataReport(
            title=title,
            created=datetime.datetime.now(datetime.UTC).isoformat(),
            verdict=self.verdict,
            advice=told["advice"],
            sources=self.sources,
            lengths=told["lengths"],
            totals=told["totals"],
            findings=told["findings"],
            tokens=[spans(row, self.prepared.tokenizer) for row in rows],
        )
        return render_data_page(data)

    def show(self) -> None:
        """Print the ledger, rows with their trained tokens coloured, findings and advice."""
        to = console.out()
        for source in self.sources:
            to.print(f"{escape(source['path'])}: {escape(source['shape'])}")
            to.print(console.table("", ["", ""], _ledger_lines(source)))
            for reason, places in source["examples"].items():
                to.print(escape(f"{reason}: " + "; ".join(places)), style="dim")
        to.print(console.table("", ["an epoch", ""], _epoch_lines(self.diagnosis)))
        if self.shown:
            to.print("\nTrained tokens stand between « and »:", style="dim")
        for row in self.prepared.data.rows("train")[: self.shown]:
            trained = row.trained
            to.print(f"\nrow {row.row}, {len(row.input_ids)} tokens, {trained} trained")
            to.print(console.trained_text(spans(row, self.prepared.tokenizer)))
        self.diagnosis.show()
        to.print(f"\n{escape(self.verdict)}", style="bold")


@dataclass(frozen=True)
class Copied:
    """A cleaned copy of data, the list of what was changed and its beginning, and rows left out."""

    path: Path
    changes: Path
    cleaned: Cleaned
    first: tuple[Mapping[str, Any], ...]
    unusable: int

    def as_json(self) -> dict[str, Any]:
        """The object of `retone inspect --fix --json` and `--redact --json`."""
        return {
            "path": str(self.path),
            "changes": str(self.changes),
            "read": self.cleaned.read,
            "written": self.cleaned.written,
            "changed": self.cleaned.changes,
            "unusable": self.unusable,
        }

    def show(self) -> None:
        """Print the first changes and where the rest stands."""
        to = console.out()
        for change in self.first:
            place = f"{change['source']}, row {change['row']}, {change['field']}"
            to.print(escape(f"{place}: {change['change']}"), soft_wrap=True)
        done = self.cleaned
        to.print(
            escape(f"{self.path}: {done.written} of {done.read} rows, changes: {done.changes}"),
            style="bold",
        )
        if self.unusable:
            to.print(f"{self.unusable} rows could not be read and were left out")
        to.print(escape(f"all changes: {self.changes}"), soft_wrap=True)
        to.print(escape(f"next: retone inspect {shlex.quote(str(self.path))}"), soft_wrap=True)


def inspect(
    what: Sequence[str],
    *,
    tokens: int = 0,
    html: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    offline: bool = False,
) -> Inspected:
    """Read, check and encode a recipe's data, or data files with the default model.

    Rows that cannot be used are a finding here, not the end.

    Args:
        what: a recipe's name or path, or data files.
        tokens: number of rows whose tokens are shown.
        html: a page to write.
        flags, sets: as in `run`.
        offline: never ask a network.
    """
    recipe = _recipe(what, flags, sets)
    allow = allowed(recipe)
    tolerant = recipe.data.model_copy(update={"bad_rows": "drop"})
    prepared = prepare(recipe.model_copy(update={"data": tolerant}), offline=offline)
    diagnosis = diagnose(prepared.data, prepared.resolved, allow)
    found = Inspected(prepared, diagnosis, tokens)
    if html is not None:
        write_whole(html, found.page(", ".join(what)))
        console.note(f"page: {html}")
    return found


def clean_copy(
    what: Sequence[str],
    target: Path,
    kind: Kind,
    *,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
) -> Copied:
    """Write the training rows of a recipe or of files to `target`, mended or redacted.

    What was changed is listed in a file beside it. Raises InputError where the target exists or
    rows cannot be read.
    """
    changes = target.with_suffix(".changes.jsonl")
    for path in (target, changes):
        if path.exists():
            raise InputError("the file exists", str(path), f"rm {path}", "exists")
    recipe = _recipe(what, flags, sets)
    cleaned, first, bad = Cleaned(), list[Mapping[str, Any]](), BadRows()
    with whole_file(changes) as file:

        def tell(change: Mapping[str, Any]) -> None:
            file.write(json.dumps(change, ensure_ascii=False) + "\n")
            if len(first) < SHOWN_CHANGES:
                first.append(change)

        write_whole(target, cleaned_lines(_samples(recipe, bad), kind, cleaned, tell))
    return Copied(target, changes, cleaned, tuple(first), bad.count)


def _recipe(what: Sequence[str], flags: Mapping[str, Any] | None, sets: Sequence[str]) -> Recipe:
    """A recipe by its name, or one of the data files."""
    first = what[0]
    if len(what) == 1 and (first in bundled_recipes() or first.endswith(".toml")):
        return load_recipe(first, flags=flags, sets=sets)
    train = first if len(what) == 1 else [{"path": path} for path in what]
    return complete_recipe({"data": {"train": train}}, " ".join(what), flags=flags, sets=sets)


def _samples(recipe: Recipe, bad: BadRows) -> Iterator[Sample]:
    """All training samples as they stand in their files.

    InputError for rows that cannot be read, unless the recipe drops them.
    """
    plain = recipe.data.model_copy(update={"system": None})  # the recipe adds it, not the data
    for source in plain.sources("train"):
        _, samples = read_samples(source, plain, bad)
        yield from samples
    if bad.count and recipe.data.bad_rows == "error":
        raise bad.problems()


def _epoch_lines(diagnosis: Diagnosis) -> list[list[str]]:
    """What an epoch looks like, for people."""
    totals, lengths = diagnosis.totals, diagnosis.lengths
    return [
        ["rows", f"{totals['rows']:,}"],
        ["optimizer steps", f"{totals['steps_per_epoch']:,}"],
        ["rows whose end token is trained", f"{totals['ended_share']:.0%}"],
        ["padding", f"{totals['padding_share']:.0%} of all tokens"],
        ["median row", f"{lengths['median']:,} tokens"],
        ["longest row allowed", f"{lengths['max_length']:,} tokens"],
    ]


def _ledger_lines(source: Mapping[str, Any]) -> list[list[str]]:
    """Rows and tokens of one source, for people."""
    tokens = source["tokens"]
    total = max(1, tokens["trained"] + tokens["masked"])
    trained = [
        ["rows trained in an epoch", f"{source['rows']:,}"],
        ["tokens trained", f"{tokens['trained']:,} ({100 * tokens['trained'] / total:.0f} %)"],
        ["tokens masked", f"{tokens['masked']:,}"],
        ["tokens cut", f"{tokens['cut']:,} in {source['cut_turns']} old turns"],
        ["longest row", f"{source['longest_row']} tokens"],
    ]
    return [
        ["read", f"{source['read']:,}"],
        *([name, f"{source[name]:,}"] for name in ("validated", "tested") if source[name]),
        *(trained if source["rows"] else []),
        *([reason, f"{count:,} left out"] for reason, count in source["dropped"].items()),
    ]


def spans(row: EncodedRow, tokenizer: Any) -> list[tuple[str, bool]]:
    """The row's text in pieces and whether their tokens are trained; what is private is stars."""
    pieces: list[tuple[list[int], bool]] = []
    for token, weight in zip(row.input_ids, row.loss_weights, strict=True):
        trained = weight != 0
        if pieces and pieces[-1][1] == trained:
            pieces[-1][0].append(token)
        else:
            pieces.append(([token], trained))
    texts = [tokenizer.decode(ids) for ids, _ in pieces]
    shown, ends = veiled("".join(texts)), [0, *accumulate(map(len, texts))]
    parts = [shown[start:end] for start, end in pairwise(ends)]
    return [(part, trained) for part, (_, trained) in zip(parts, pieces, strict=True)]
