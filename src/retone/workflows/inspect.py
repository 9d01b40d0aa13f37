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

    def as_json(self) -> dict[str, Any]:
        """The object of `retone inspect --json`."""
        ledgers = [ledger.as_json() for ledger in self.prepared.ledgers]
        return {
            "sources": ledgers,
            "tokens": ledgers[0]["tokens"],
            "findings": [],
            "verdict": self.verdict,
        }

    @property
    def verdict(self) -> str:
        """One sentence."""
        ledger = self.prepared.ledgers[0]
        left = sum(ledger.dropped.values())
        return (
            f"{ledger.used} of {ledger.read} conversations are trained on"
            + (f"; {left} are left out" if left else "")
            + f"; {len(self.prepared.validation)} validate, {len(self.prepared.test)} test"
        )

    def show(self) -> None:
        """Print the ledger, then rows with their trained tokens coloured."""
        to = console.out()
        ledger = self.prepared.ledgers[0]
        total = ledger.trained + ledger.masked
        rows = [
            ["rows", f"{len(ledger.lengths):,}"],
            ["tokens trained", f"{ledger.trained:,} ({100 * ledger.trained / total:.0f} %)"],
            ["tokens masked", f"{ledger.masked:,}"],
            ["tokens cut", f"{ledger.cut_tokens:,} in {ledger.cut_turns} old turns"],
            ["longest row", f"{max(ledger.lengths)} tokens"],
            *([reason, f"{count} left out"] for reason, count in ledger.dropped.items()),
        ]
        to.print(f"{escape(ledger.path)}: {escape(ledger.shape)}")
        to.print(console.table("", ["", ""], rows))
        for reason, places in ledger.examples.items():
            to.print(escape(f"{reason}: " + "; ".join(places)), style="dim")
        if self.shown:
            to.print("\nTrained tokens stand between « and »:", style="dim")
        for row in self.prepared.encoded[: self.shown]:
            to.print(f"\nrow {row.row}, {len(row.input_ids)} tokens, {row.trained} trained")
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
