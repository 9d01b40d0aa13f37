"""docs/formats.md: the row shapes, and what each file of the shared test data is read as.

Rows count once: those of which a sample with an answer was made are used, the others are dropped
for a reason. Nothing is tokenised here, so rows that are too long still count as used.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evidence import MADE_BY
from retone.config import SourceSection
from retone.conversation import Conversation
from retone.data.collecting import as_trained
from retone.data.documents import CHUNK_CHARACTERS
from retone.data.formats import FORMATS, LOOKED_AT, Sample, convert, detect_shape
from retone.data.instructions import PAIR_COLUMNS
from retone.data.row_checks import row_faults
from retone.data.sources import BadRows, read_items
from retone.data.turns import CHAT_COLUMNS, SPELLINGS
from retone.errors import InputError

FOLDERS = ("style", "instruct", "qa", "text", "golden/formats")
# Settings of files that are refused without them, or that hold more than one dataset.
SETTINGS: dict[str, dict[str, Any]] = {
    "style/yoda_sentences.csv": {
        "columns": {"prompt": "sentence", "completion": "translation_extra"}
    },
    "style/public_kjv_bbe_web_ylt_2000.jsonl": {"columns": {"prompt": "web", "completion": "kjv"}},
    "style/filters_styles_720.jsonl": {"columns": {"prompt": "plain", "completion": "pirate"}},
    "instruct/identity.json": {"values": {"name": "Ada", "author": "the team"}},
    "instruct/rasbt/instruction-data-with-preference.json": {"format": "alpaca"},
    "qa/judge_prompts.jsonl": {"columns": {"prompt": "prompt_template"}, "format": "prompts"},
}


@dataclass
class Account:
    """What became of the rows of one file.

    Attributes:
        shape, evidence: as detected; the shape of a file that was refused is empty, and its
            evidence says why and what to type.
        read: rows.
        used: rows of which at least one sample with an answer was made.
        samples: conversations, preferences and documents made of the used rows.
        dropped: reason -> rows.
        alarms: code of a finding -> samples that a check of single rows names.
    """

    shape: str = ""
    evidence: str = ""
    read: int = 0
    used: int = 0
    samples: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    alarms: Counter[str] = field(default_factory=Counter)


Accounts = list[tuple[str, dict[str, Any], Account]]


def formats_page(found: Accounts) -> str:
    """docs/formats.md, with what became of the files of the test data."""
    lines = [
        "# Row shapes", MADE_BY, "",
        f"The first {LOOKED_AT} rows of a source tell its shape: for each row the first line of",
        "this table that fits, then the shape that most rows have. `retone inspect` shows it with",
        "the evidence. `data.format` names a shape instead, and `data.columns` says which column",
        "plays which part, for example",
        "`--set 'data.columns={prompt=\"plain\", completion=\"styled\"}'`. Columns that are not",
        "read stay with the row. A row of another shape, or with a value of the wrong type, is",
        "counted and named with its field; nothing is skipped silently.", "",
        "| `data.format` | parts | recognised by | example |", "|---|---|---|---|",
    ]  # fmt: skip
    for name, form in FORMATS.items():
        parts = ", ".join(form.parts)
        lines.append(f"| `{name}` | {parts} | {form.needs} | `{form.example}` |")
    pairs = ", ".join(f"`{prompt}`/`{completion}`" for prompt, completion in PAIR_COLUMNS)
    lines += [
        "", "`system` and `tools` (also `system_prompt`, `functions`) are read with every shape",
        "but `text`.", "",
        f"**Pairs** are told by these columns: {pairs}. Either side may hold turns instead of a",
        "text; those of a prompt are not trained. The input of an `alpaca` row follows its",
        "instruction, the context of a `qa` row stands before its question, each with an empty",
        "line between. Keywords joined by commas are the answer of a `qa` row; of several answers",
        "the first is trained. All of them are kept for scoring.", "",
        f"**Turns** are looked for in {', '.join(f'`{column}`' for column in CHAT_COLUMNS)}.",
        "Speakers may be called:", "",
        "| role | spellings |", "|---|---|",
        *(f"| {role} | {', '.join(spelled)} |" for role, spelled in SPELLINGS.items()),
        "", "A turn by `call` is the assistant's, with a tool call in JSON. `weight`,",
        "`loss_weight`, `train` and `training` weigh one turn in the loss, `loss_weight` in a part",
        "of the content weighs that part.", "",
        f"**Text** is cut at paragraphs into documents of at most {CHUNK_CHARACTERS:,} characters.",
        "Chats that have already been rendered (`### Human`, `[INST]` ...), rows of one turn each",
        "and token ids are refused.", "",
        "**Placeholders** such as `{{name}}` are filled from `data.values`. Those without a value",
        "are all named in one error.", "",
        "## Files of the test data", "",
        "Read: rows. Used: rows that gave at least one sample with an answer. Samples: of the used",
        "rows. Some files stand twice, as they are and with settings.", "",
        "| file | shape | evidence | read | used | samples | dropped |",
        "|---|---|---|--:|--:|--:|---|",
    ]  # fmt: skip
    for name, settings, account in found:
        shown = f"`{name}`" + "".join(f", {key} = {_toml(v)}" for key, v in settings.items())
        dropped = ", ".join(f"{reason}: {count:,}" for reason, count in account.dropped.items())
        counts = f"{account.read:,} | {account.used:,} | {account.samples:,}"
        evidence = account.evidence.replace("|", "\\|")
        lines.append(
            f"| {shown} | {account.shape or 'refused'} | {evidence} | {counts} | {dropped} |"
        )
    return "\n".join(lines) + "\n"


def accounts(shared: Path) -> Accounts:
    """(name below data, settings, what became of the rows) of every file."""
    data = shared / "data"
    files = [
        path for folder in FOLDERS for path in sorted((data / folder).rglob("*")) if path.is_file()
    ]
    found = []
    for path in files:
        name = path.relative_to(data).as_posix()
        for settings in ({}, SETTINGS.get(name)):
            if settings is not None:
                found.append((name, settings, account_of(path, **settings)))
    return found


def account_of(
    path: Path,
    *,
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    values: Mapping[str, str] | None = None,
) -> Account:
    """Read and convert a file, and account for every row of it."""
    source = SourceSection(path=str(path), format=format, columns=dict(columns or {}))
    bad, account = BadRows(), Account()
    items = list(read_items(source, bad))
    account.read = len(items) + bad.count
    if bad.count:
        account.dropped["unreadable"] = bad.count
    try:
        shape = detect_shape([item.values for item in items[:LOOKED_AT]], source, path.name)
        unread = bad.count
        samples = list(convert(items, shape, system=None, values=values or {}, bad=bad))
    except InputError as error:
        account.evidence = f"{error.problem}; {error.remedy}"
        account.dropped[error.code] = len(items)
        return account
    account.shape, account.evidence = shape.name, shape.evidence
    trained = filter(None, map(as_trained, samples))
    account.alarms = Counter(fault.code for sample in trained for fault in row_faults(sample))
    for _, group in itertools.groupby(samples, key=lambda sample: (sample.source, sample.row)):
        answered = sum(map(has_answer, group))
        account.used += bool(answered)
        account.samples += answered
        if not answered:
            account.dropped["no-assistant-turn"] += 1
    if bad.count > unread:
        account.dropped["broken-rows"] = bad.count - unread
    return account


def has_answer(sample: Sample) -> bool:
    """Whether there is anything to train on: an answer, or plain text."""
    if isinstance(sample, Conversation):
        return any(message.role == "assistant" for message in sample.messages)
    return True


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        inner = ", ".join(f'{key} = "{item}"' for key, item in value.items())
        return f"`{{ {inner} }}`"
    return f'`"{value}"`'
