"""docs/findings.md: what `retone inspect` looks for, from the table of the checks."""

from __future__ import annotations

from evidence import MADE_BY
from format_table import Accounts
from retone.data.findings import CHECKS, SEVERITIES

GROUPS = {
    "One row by itself": "unusable-row",
    "All rows together": "leak",
    "How it is to be trained": "warmup-too-long",
}
INTRODUCTION = """\
`retone inspect DATA` looks for these, and so do `retone run` and `retone train` before the first
step. An **error** makes `inspect` exit with 1 and stops a run; `--set 'data.allow=["CODE"]'` lets
it go on. A **warning** is told, a **note** is only listed. Each finding counts the rows and names
up to five of them; `--html page.html` writes all of it as a page, and every report holds the same
section. Row checks look at every row that is read and could be trained or tested on; leaks,
contradictions and lengths only at those that are used. Secrets and personal data are stars wherever
rows are shown."""
COPIES = """\
## Copies

`--fix copy.jsonl` writes the training rows with safe mends of turns and texts: wrongly decoded
letters, white space at the ends, invisible characters; rows that equal an earlier one are left out.
`--redact copy.jsonl` writes them with secrets and personal data replaced by what they are, such as
`[E-MAIL ADDRESS]`, in tool calls and all other columns too. Both write `copy.changes.jsonl` beside
it: source, row, field and what was changed. The source stays as it is."""


# What reading the rows behind each alarm of a single row's check came to: (file, code) -> verdict.
VERDICTS = {
    ("style/filters_styles_720.jsonl", "answer-equals-prompt"): "true: the filter changes nothing",
    ("style/filters_styles_720.jsonl", "mojibake"): "true: a character is lost",
    ("style/gpteacher_roleplay.json", "placeholder"): "true, one of them in a stage direction",
    ("style/gpteacher_roleplay.json", "teacher-residue"): "one true, one arguable, one false (the "
    "prompt asks to play an AI)",
    ("style/gpteacher_roleplay.json", "white-space"): "true",
    ("style/public_kjv_bbe_web_ylt_2000.jsonl", "answer-equals-prompt"): "true and harmless: "
    "translations agree",
    ("style/yoda_sentences.csv", "answer-equals-prompt"): "true",
    ("instruct/alpaca_en_demo.json", "placeholder"): "6 true, 2 false (a template is asked for)",
    ("instruct/alpaca_en_demo.json", "teacher-residue"): "true",
    ("instruct/glaive_toolcall_en_demo.json", "teacher-residue"): "true: openings and refusals, "
    "which a bot with tools may want",
    ("instruct/rasbt/instruction-data-with-preference.json", "teacher-residue"): "true",
    ("instruct/seed_tasks.jsonl", "placeholder"): "true",
    ("instruct/seed_tasks.jsonl", "personal-data"): "true: a bank's sender address",
    ("qa/NQ-open.dev.jsonl", "empty-answer"): "true",
    ("qa/NQ-open.dev.jsonl", "white-space"): "true: a soft hyphen",
    ("qa/NQ-open.dev.jsonl", "placeholder"): "false: a character of a book is called so",
    ("golden/formats/oumi__alpaca_format.jsonl", "teacher-residue"): "true",
    ("golden/formats/oumi__oumi_format.jsonl", "teacher-residue"): "true",
}


def findings_page(accounts: Accounts) -> str:
    """docs/findings.md, with the alarms on the files of the test data."""
    lines = ["# Findings", MADE_BY, "", INTRODUCTION]
    starts = {code: title for title, code in GROUPS.items()}
    for code, check in CHECKS.items():
        if code in starts:
            lines += ["", f"## {starts[code]}", "", "| code | severity | rows that | to do |"]
            lines.append("|---|---|---|---|")
        assert check.severity in SEVERITIES
        cells = (f"`{code}`", check.severity, check.says, check.remedy)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", COPIES, "", *_alarms(accounts)]) + "\n"


def _alarms(accounts: Accounts) -> list[str]:
    """What the checks of single rows say of public data, and whether they are right."""
    read = sum(account.samples for _, _, account in accounts)
    lines = [
        "## Alarms on public data", "",
        f"What the checks of single rows say of the {read:,} samples of the test data (files as in",
        "[row shapes](formats.md); the others raise no alarm), and what reading the rows came to.",
        "The checks were tuned on these files, so this is no measure of how often they err",
        "elsewhere. Leaks are measured in [results](results.md).", "",
        "| file | code | samples | looked at |", "|---|---|--:|---|",
    ]  # fmt: skip
    counts: dict[tuple[str, str], int] = {}
    for name, _, account in accounts:
        for code, count in account.alarms.items():
            counts[name, code] = max(count, counts.get((name, code), 0))
    for (name, code), count in counts.items():
        verdict = VERDICTS.get((name, code), "not yet")
        lines.append(f"| `{name}` | `{code}` | {count:,} | {verdict} |")
    return lines
