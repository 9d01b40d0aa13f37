"""docs/findings.md: what `retone inspect` looks for, from the table of the checks."""

from __future__ import annotations

from evidence import MADE_BY
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
section. Row checks look at every row that is read; leaks, contradictions and lengths only at those
that are used."""
COPIES = """\
## Copies

`--fix copy.jsonl` writes the training rows with safe mends: wrongly decoded text, white space,
invisible characters, rows that equal an earlier one. `--redact copy.jsonl` writes them with secrets
and personal data replaced by what they are, such as `[E-MAIL ADDRESS]`. Both write
`copy.changes.json` beside it: source, row, field and what was changed; what was redacted is not
repeated there. The source stays as it is."""


def findings_page() -> str:
    """The document."""
    lines = ["# Findings", MADE_BY, "", INTRODUCTION]
    starts = {code: title for title, code in GROUPS.items()}
    for code, check in CHECKS.items():
        if code in starts:
            lines += ["", f"## {starts[code]}", "", "| code | severity | rows that | to do |"]
            lines.append("|---|---|---|---|")
        assert check.severity in SEVERITIES
        cells = (f"`{code}`", check.severity, check.says, check.remedy)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", COPIES]) + "\n"
