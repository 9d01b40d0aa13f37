"""`retone batch`: a file of prompts in, a file of answers out."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.chat_template import RowRejected
from retone.config import SourceSection
from retone.conversation import Conversation, Message
from retone.data.archives import DataFile, open_files
from retone.data.lines import as_utf8, lines
from retone.data.spool import Trainable
from retone.errors import InputError
from retone.inference.sampling import Sampling
from retone.run_dir import fingerprint, write_whole
from retone.workflows.adopt import run_or_adapter
from retone.workflows.create import read_samples_of
from retone.workflows.load import Tuned, load

CHUNK = 4  # batches that are written together: neighbours in length are found among them
TEXT_ENDINGS = (".txt", ".md")


@dataclass(frozen=True)
class Answered:
    """A finished file of answers."""

    path: Path
    rows: int
    before: int
    tokens: int
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The object of `retone batch --json`."""
        return {
            "path": str(self.path),
            "rows": self.rows,
            "resumed": self.before,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }

    def show(self) -> None:
        """Print what was written, and how fast."""
        rate = self.tokens / self.seconds if self.seconds else 0.0
        resumed = f", {self.before} of them in an earlier sitting" if self.before else ""
        console.out().print(f"wrote {escape(str(self.path))}: {self.rows} answers{resumed}")
        console.out().print(f"{self.tokens} tokens in {self.seconds:.0f} s, {rate:.0f} tokens/s")


def batch(
    run: str,
    source: str,
    output: Path,
    *,
    column: str | None = None,
    base: bool = False,
    sampling: dict[str, Any] | None = None,
    offline: bool = False,
) -> Answered:
    """Answer every prompt of a file; stopped and started again it goes on where it was.

    Args:
        run: a run's directory, name, or latest; or the folder of an adapter.
        source: a data file of any shape (answers in it are left aside), or text, a prompt a line.
        output: JSON lines: row, prompt, answer, tokens, stopped; in the order of the source.
        column: the column that holds the prompts.
        base: let the untuned model answer.
        sampling: fields of `Sampling` to change.
        offline: never ask a network.

    Raises:
        InputError: the output is there already, or rows of the source cannot be used.
    """
    if output.exists():
        raise InputError(
            "the file of answers is there already", str(output), "choose another name", "exists"
        )
    found = run_or_adapter(run, offline=offline)
    tuned = load(found, offline=offline)
    how = replace(tuned.sampling, **(sampling or {}))
    prompts = _prompts(tuned, source, column)
    asked = [[message.as_dict() for message in prompt] for prompt in prompts]
    partial = output.with_name(f"{output.name}.partial")
    before = _kept(partial, fingerprint(str(found.path.resolve()), base, asdict(how), asked))
    started = time.perf_counter()
    tokens = _answer(partial, prompts, before, tuned, how, base=base)
    with partial.open(encoding="utf-8") as file:
        next(file)  # the settings
        write_whole(output, file)
    partial.unlink()
    return Answered(output, len(prompts), before, tokens, time.perf_counter() - started)


def _answer(
    partial: Path, prompts: Sequence[list[Message]], before: int, tuned: Tuned, how: Sampling,
    *, base: bool,
) -> int:  # fmt: skip
    """Append the answers that are missing; how many tokens they have."""
    started, tokens = time.perf_counter(), 0
    respond = tuned.engine.base if base else tuned.engine.tuned
    size = CHUNK * tuned.engine.batch_size
    with console.ticker() as tick, partial.open("a", encoding="utf-8") as file:
        tick("answers", before, len(prompts))
        for start in range(before, len(prompts), size):
            picked = prompts[start : start + size]
            for at, answer in enumerate(respond(picked, how)):
                tokens += answer.tokens
                line = {"row": start + at + 1, "prompt": picked[at][-1].content,
                        "answer": answer.text, "tokens": answer.tokens,
                        "stopped": answer.stopped}  # fmt: skip
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            rate = f"{tokens / (time.perf_counter() - started):.0f} tokens/s"
            tick("answers", start + len(picked), len(prompts), rate)
    return tokens


def _kept(partial: Path, settings: str) -> int:
    """Rows that an earlier sitting answered with the same settings; a line cut short is dropped."""
    kept = partial.read_text(encoding="utf-8").split("\n") if partial.is_file() else []
    if not kept or kept[0] != json.dumps({"settings": settings}):
        write_whole(partial, json.dumps({"settings": settings}) + "\n")
        return 0
    write_whole(partial, "".join(f"{line}\n" for line in kept[:-1]))
    return len(kept) - 2


def _prompts(tuned: Tuned, source: str, column: str | None) -> list[list[Message]]:
    """What is asked: every row up to its last answer, or every line of a text."""
    if Path(source).suffix in TEXT_ENDINGS and Path(source).is_file():
        found = [
            tuned.messages(Message("user", line.strip()))
            for file in open_files(DataFile(Path(source), source))
            for _, line in lines(as_utf8(file))
            if line.strip()
        ]
    else:
        samples = _samples(tuned, source, column)
        found = [
            list(sample.prompt)
            if isinstance(sample, Conversation)
            else tuned.messages(Message("user", sample.text))
            for sample in samples
        ]
    refused = []
    for row, prompt in enumerate(found, 1):
        try:
            tuned.engine.prompt_ids(prompt)
        except RowRejected as rejected:
            refused.append(f"row {row}: {rejected.detail or rejected.reason}")
    if refused or not found:
        raise InputError(
            f"{len(refused)} prompts cannot be asked" if found else "there is nothing to answer",
            f"{source}: {'; '.join(refused[:5]) or 'no rows'}",
            "mend those rows; --column NAME says where the prompts are",
            "wrong-prompts",
        )
    return found


def _samples(tuned: Tuned, source: str, column: str | None) -> list[Trainable]:
    """The rows of a data file; its prompts are in the column that is named, else in the one that
    the recipe's own data has them in, else where the shape of the rows says."""
    recipe = tuned.resolved.recipe
    own = [one.columns.get("prompt") for one in recipe.data.sources("train")]
    for name in [column] if column else dict.fromkeys(own):
        columns = {"prompt": name} if name else {}
        try:
            return read_samples_of(recipe.model_dump(), SourceSection(path=source, columns=columns))
        except InputError as error:
            if column or not name or error.code != "missing-column":
                raise
    return read_samples_of(recipe.model_dump(), SourceSection(path=source))
