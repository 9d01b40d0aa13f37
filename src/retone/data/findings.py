"""What can be wrong with data: a table of checks, and what was found by them.

A row check looks at one row (`row_checks`, `private`), a corpus check at all of them
(`corpus_checks`, `leakage`); recipe checks (`recipe_checks`) look at how long and how a model is
to be trained. All of them speak through a `Finding`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from retone.data.private import veiled

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
KEPT_ROWS = 5  # named with an excerpt in a finding
EXCERPT = 100  # characters


@dataclass(frozen=True)
class Check:
    """One kind of finding.

    Attributes:
        severity: an error stops a run unless `data.allow` names its code.
        says: what is wrong with the rows, after their number: "12 rows: SAYS".
        remedy: what to do about it, or to type.
        counted: the finding is one of rows; else `says` stands alone.
    """

    severity: Severity
    says: str
    remedy: str
    counted: bool = True


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        code: key of `CHECKS`.
        severity: as the check's.
        count: rows (or groups of rows) concerned.
        rows: the first few as "file, row n: excerpt".
        message: one sentence.
        remedy: what to do about it.
    """

    code: str
    severity: Severity
    count: int
    rows: tuple[str, ...]
    message: str
    remedy: str

    def as_json(self) -> dict[str, Any]:
        """An entry of `findings` in `--json` and in findings.json."""
        return {
            "code": self.code,
            "severity": self.severity,
            "count": self.count,
            "rows": list(self.rows),
            "message": self.message,
            "remedy": self.remedy,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Finding:
        """The inverse of `as_json`."""
        return cls(**{**value, "rows": tuple(value["rows"])})


def finding(code: str, count: int, rows: Iterable[str] = (), detail: str = "") -> Finding:
    """A finding in the words of its check; `detail` is put behind them."""
    check = CHECKS[code]
    number = f"{count:,} row{'' if count == 1 else 's'}: " if check.counted else ""
    message = f"{number}{check.says}" + (f" ({detail})" if detail else "")
    return Finding(code, check.severity, count, tuple(rows), message, check.remedy)


def excerpt(text: str, start: int = 0, end: int = 0) -> str:
    """A line of `text` around the characters from `start` to `end`, short enough for a table.

    Secrets and personal data are stars there, and what a terminal would obey is left out.
    """
    text = "".join(letter if letter.isprintable() else " " for letter in veiled(text))
    room = max(0, EXCERPT - (end - start))
    first = max(0, min(start - room // 3, len(text) - EXCERPT))
    cut = " ".join(text[first : first + EXCERPT].split())
    return f"{'…' if first else ''}{cut}{'…' if first + EXCERPT < len(text) else ''}"


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """Errors, then warnings, then notes; as they came within each."""
    return sorted(findings, key=lambda found: SEVERITIES.index(found.severity))


def lowered(found: Finding, codes: Iterable[str]) -> Finding:
    """The finding as a warning where it is an error that the recipe allows."""
    allowed = found.severity == "error" and found.code in set(codes)
    return replace(found, severity="warning") if allowed else found


@dataclass
class RowHits:
    """Rows that checks of single rows found something in, by code.

    Attributes:
        counts: code -> rows.
        rows: code -> the first few as "file, row n: excerpt".
    """

    counts: dict[str, int] = field(default_factory=dict)
    rows: dict[str, list[str]] = field(default_factory=dict)

    def add(self, code: str, where: str, shown: Callable[[], str]) -> None:
        """Count one row; its excerpt is made where it is kept."""
        self.counts[code] = self.counts.get(code, 0) + 1
        kept = self.rows.setdefault(code, [])
        if len(kept) < KEPT_ROWS:
            kept.append(f"{where}: {shown()}")

    def findings(self) -> list[Finding]:
        """A finding for each code."""
        return [finding(code, count, self.rows[code]) for code, count in self.counts.items()]


CHECKS: dict[str, Check] = {
    # one row by itself
    "unusable-row": Check(
        "error",
        "not to be read, or of another shape",
        "mend them, or --set data.bad_rows=drop to leave them out",
    ),
    "empty-answer": Check(
        "warning",
        "the answer says nothing",
        "write the answer or delete the row: the model would learn to say nothing",
    ),
    "answer-equals-prompt": Check(
        "warning",
        "the answer repeats the prompt",
        "delete the row, unless leaving the text as it is is what you teach",
    ),
    "teacher-residue": Check(
        "warning",
        "the answer speaks as the assistant that wrote it",
        "rewrite or delete these answers: the phrases spread to every answer",
    ),
    "role-order": Check(
        "warning",
        "the turns do not alternate between user and assistant",
        "join turns that belong together, and let a user speak first",
    ),
    "special-token": Check(
        "warning",
        "the text holds a model's control tokens",
        "delete the tokens: the chat template writes its own",
    ),
    "mojibake": Check(
        "warning",
        "the text was decoded with the wrong encoding",
        "retone inspect DATA --fix clean.jsonl",
    ),
    "white-space": Check(
        "note",
        "the answer has white space around it, or invisible characters inside",
        "retone inspect DATA --fix clean.jsonl",
    ),
    "placeholder": Check(
        "warning",
        "a placeholder was left in",
        "fill it in, or set data.values for {{names}}",
    ),
    "secret": Check(
        "error",
        "the text holds a key, a token or a password",
        "retone inspect DATA --redact clean.jsonl, and revoke what was published",
    ),
    "personal-data": Check(
        "warning",
        "the text holds an address, a phone number or another personal identifier",
        "retone inspect DATA --redact clean.jsonl, unless you may train on it",
    ),
    # all rows together
    "leak": Check(
        "error",
        "what a test row says, among the training rows",
        "delete them from the training file, or test on other rows",
    ),
    "near-leak": Check(
        "warning",
        "rare wording of a test row, among the training rows",
        "read them beside each other: a score on such test rows flatters",
    ),
    "also-in-test": Check(
        "warning",
        "also a test row, left out of training",
        "nothing: the score stays honest; delete them from the training file to be rid of this",
    ),
    "duplicate": Check(
        "note",
        "equal to another row, left out",
        "nothing, or --set data.deduplicate=none to keep them",
    ),
    "near-duplicate": Check(
        "note",
        "nearly what another row says, left out",
        "nothing, or --set data.deduplicate=exact to keep them",
    ),
    "answer-cut": Check(
        "warning",
        "too long, so that the answer would be cut; left out",
        "raise data.max_length, or shorten or split the rows",
    ),
    "never-trained": Check(
        "warning",
        "no token that would be trained; left out",
        "give the answer a loss_weight above 0, or write the answer",
    ),
    "rejected-row": Check(
        "warning",
        "not what the model's chat template can write; left out",
        "mend them: the reasons stand with the ledger",
    ),
    "rows-lost": Check(
        "error",
        "left out for faults, a tenth or more of a source",
        "mend the rows, or raise data.max_length",
    ),
    "contradiction": Check(
        "warning",
        "the question of another row, with another answer",
        "keep one answer to each question, unless several are right",
    ),
    "dominant-answer": Check(
        "warning",
        "one and the same answer",
        "balance the answers: the model learns to give the frequent one",
    ),
    "language-mix": Check(
        "warning",
        "an answer in another language than most",
        "delete or translate them, unless you teach several languages",
    ),
    "length-drift": Check(
        "warning",
        "answers much longer than in another part of the data",
        "test on answers like those that are trained, or train on such as are tested",
    ),
    "few-rows": Check(
        "warning",
        "few to learn from",
        "collect more rows; under 50, try a good prompt first",
    ),
    "leaks-sampled": Check(
        "note",
        "only some of the held-out rows were looked for among the training rows",
        "nothing: they were drawn apart from near-duplicates; or name a test file",
        counted=False,
    ),
    "not-checked": Check(
        "note", "one check was left out", "pip install 'retone[languages]'", counted=False
    ),
    "file": Check(
        "note", "something was taken for granted about a file", "look at the file", counted=False
    ),
    # how it is to be trained
    "warmup-too-long": Check(
        "error", "the warm-up is as long as the run", "lower train.warmup_steps", counted=False
    ),
    "max-length-short": Check(
        "error",
        "most rows are longer than data.max_length",
        "raise data.max_length",
        counted=False,
    ),
    "alpha-rank": Check(
        "warning",
        "method.alpha / method.rank is ten times off the usual 1 to 2",
        "set method.alpha to once or twice method.rank",
        counted=False,
    ),
    "few-steps": Check(
        "warning",
        "the run has under 20 steps",
        "raise train.epochs or lower train.batch_size",
        counted=False,
    ),
    "many-epochs": Check(
        "warning",
        "every row is seen over 50 times",
        "lower train.epochs or train.max_steps",
        counted=False,
    ),
    "evaluation-never": Check(
        "note",
        "no evaluation falls inside the run, so its last weights are kept whatever they are",
        "lower train.evaluate_every, or raise data.validation_fraction",
        counted=False,
    ),
}
