"""`retone inspect`: row shapes, the token ledger, and what of a row is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape

from retone import console
from retone.batch import EncodedRow
from retone.config import bundled_recipes, complete_recipe, load_recipe
from retone.workflows.create import Prepared, prepare


@dataclass(frozen=True)
class Inspected:
    """What training would read."""

    prepared: Prepared
    shown: int

    @property
    def sources(self) -> list[dict[str, Any]]:
        """The ledger: one entry for each source, those that are trained on first."""
        found: list[dict[str, Any]] = self.prepared.data.ledger["sources"]
        return found

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens of one epoch that are trained and masked, and those cut from its rows."""
        names = ("trained", "masked", "cut")
        return {name: sum(source["tokens"][name] for source in self.sources) for name in names}

    def as_json(self) -> dict[str, Any]:
        """The object of `retone inspect --json`."""
        return {
            "sources": self.sources,
            "tokens": self.tokens,
            "findings": self.findings,
            "verdict": self.verdict,
        }

    @property
    def findings(self) -> list[dict[str, Any]]:
        """What was left out, by source and reason, and what was taken for granted about files."""
        left_out = [
            {
                "code": reason,
                "severity": "warning",
                "count": count,
                "rows": source["examples"].get(reason, []),
                "message": f"{source['path']}: {count} left out, {reason}",
            }
            for source in self.sources
            for reason, count in source["dropped"].items()
        ]
        notes = [
            {"code": "file", "severity": "note", "count": 1, "rows": [], "message": note}
            for note in self.prepared.data.ledger["notes"]
        ]
        return left_out + notes

    @property
    def verdict(self) -> str:
        """One sentence."""
        count = {
            name: sum(source[name] for source in self.sources)
            for name in ("read", "used", "validated", "tested")
        }
        trained = count["used"] - count["validated"] - count["tested"]
        left = count["read"] - count["used"]
        return (
            f"{trained} of {count['read']} samples are trained on"
            + (f"; {left} are left out" if left else "")
            + f"; {count['validated']} validate, {count['tested']} test"
        )

    def show(self) -> None:
        """Print the ledger, then rows with their trained tokens coloured."""
        to = console.out()
        for source in self.sources:
            to.print(f"{escape(source['path'])}: {escape(source['shape'])}")
            to.print(console.table("", ["", ""], _ledger_lines(source)))
            for reason, places in source["examples"].items():
                to.print(escape(f"{reason}: " + "; ".join(places)), style="dim")
        for note in self.prepared.data.ledger["notes"]:
            to.print(escape(note), style="dim")
        if self.shown:
            to.print("\nTrained tokens stand between « and »:", style="dim")
        for row in self.prepared.data.rows("train")[: self.shown]:
            trained = row.trained
            to.print(f"\nrow {row.row}, {len(row.input_ids)} tokens, {trained} trained")
            to.print(console.trained_text(spans(row, self.prepared.tokenizer)))
        to.print()
        to.print(escape(self.verdict), style="bold")


def inspect(
    what: str,
    *,
    tokens: int = 0,
    flags: Mapping[str, Any] | None = None,
    sets: Sequence[str] = (),
    offline: bool = False,
) -> Inspected:
    """Read and encode a recipe's data, or one data file with the default model.

    Args:
        what: a recipe's name or path, or a data file.
        tokens: number of rows whose tokens are shown.
        flags, sets: as in `run`.
        offline: never ask a network.
    """
    if what in bundled_recipes() or what.endswith(".toml"):
        recipe = load_recipe(what, flags=flags, sets=sets)
    else:
        recipe = complete_recipe({"data": {"train": what}}, what, flags=flags, sets=sets)
    return Inspected(prepare(recipe, offline=offline), tokens)


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
    """The row's text in pieces, each with whether its tokens are trained."""
    pieces: list[tuple[list[int], bool]] = []
    for token, weight in zip(row.input_ids, row.loss_weights, strict=True):
        trained = weight != 0
        if pieces and pieces[-1][1] == trained:
            pieces[-1][0].append(token)
        else:
            pieces.append(([token], trained))
    return [(tokenizer.decode(ids), trained) for ids, trained in pieces]
