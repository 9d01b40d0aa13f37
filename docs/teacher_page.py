"""docs/teacher.md: how a teacher model writes a dataset, and what a proof run measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evidence import MADE_BY
from retone.teacher.answers import RUBRIC
from retone.teacher.endpoints import servers
from retone.teacher.persona import bundled_personas, load_persona
from retone.teacher.pricing import price_table
from retone.teacher.questions import NEAR, question_table
from retone.teacher.rewriting import EVOLUTIONS

INTRODUCTION = """\
`retone synthesize` has a model write the rows that another one is tuned on. A description of who
speaks is enough; texts, an author's corpus or documents are other beginnings."""
WAY = """\
1. **Questions.** Each request asks for a few messages on one topic, of one family, in one form. A
   question is let in when no earlier one shares {near:.0%} of its 4-grams of characters. Rounds
   over the grid go on until there are as many distinct ones as were asked for, the budget ends, or
   the teacher has nothing new; which of these it was is said.
2. **Answers.** `--best-of` drafts with the whole description and the example lines, each judged by
   the rubric; one below `--least` is written again with its faults to be named first, and the
   better of both is kept. `--judge MODEL@ENDPOINT` lets another model judge. With `--turns` the
   teacher also plays the user.
3. **The gate.** Left out, with the reason: answers that were cut, below the rubric, too long, in
   another language, copied from the example lines, and whatever `retone inspect` would warn of. A
   text that is judged or rewritten stands between marks that it cannot contain, and nothing that a
   teacher writes is ever executed.
4. **Review.** `retone review FILE` shows rows one by one; each decision is kept in the file."""
COST = """\
Every answer is kept in a database by the hash of what was asked, before it is used: the same
command again asks only for what is missing, whether it was stopped or killed; with a larger budget
and another name it goes on where the money ended. A request is sent only when the most that it can
cost still fits into `--budget`. Fewer requests are
sent at once when a server says that it is busy, and what it asks for in `Retry-After` is honoured.
Keys come from the environment (`RETONE_TEACHER_KEY` for an URL), and what a server sends back is
cleared of them. Whether answers may be trained on is a matter of the provider's terms."""


def teacher_page(proofs: Mapping[str, Mapping[str, Any]]) -> str:
    """docs/teacher.md from the tables of the package and the committed proofs."""
    lines = ["# Datasets by a teacher", MADE_BY, "", INTRODUCTION, ""]
    lines += ["## The way", "", WAY.format(near=NEAR), ""]
    lines += ["## Families and forms of questions", "", *_questions(), ""]
    lines += ["## The rubric", "", *(f"- {name}: {what}" for name, what in RUBRIC.items()), ""]
    lines += ["## Ways to evolve a question", ""]
    lines += [*(f"- {name}: {what}" for name, what in EVOLUTIONS.items()), ""]
    lines += ["## Bundled personas", "", *_personas(), ""]
    lines += ["## Teachers", "", COST, "", *_servers(), "", *_prices(), ""]
    lines += ["## Measured", "", *_measured(proofs.get("synthesis"), proofs.get("teacher"))]
    return "\n".join(lines).rstrip() + "\n"


def _questions() -> Iterator[str]:
    for kind, rows in question_table().items():
        yield f"| {kind} | such a question is |"
        yield "|---|---|"
        yield from (f"| `{name}` | {asks} |" for name, asks in rows.items())
        yield ""
    yield "A persona adds families under `[families]`, and leaves some out with `without`."


def _personas() -> Iterator[str]:
    for name in bundled_personas():
        persona = load_persona(name)
        yield f"- `{name}`: {persona.name}. {persona.who}"
    yield ""
    yield "`retone new my.toml --from persona:lighthouse` writes one to start from."


def _servers() -> Iterator[str]:
    yield "| `--endpoint` | address | key from |"
    yield "|---|---|---|"
    yield "| `local` | a model on this machine, as recipes name it | |"
    for name, server in servers().items():
        yield f"| `{name}` | {server.url} | {f'`{server.key}`' if server.key else ''} |"


def _prices() -> Iterator[str]:
    yield "| model | US dollars for a million tokens in | out | as of | source |"
    yield "|---|---|---|---|---|"
    for model, row in price_table().items():
        yield (
            f"| {model} | {row['prompt']:.2f} | {row['completion']:.2f} | {row['date']} "
            f"| {row['source']} |"
        )


def _measured(real: Mapping[str, Any] | None, client: Mapping[str, Any] | None) -> Iterator[str]:
    if client:
        killed, rate, long = client["killed"], client["rate"], client["long"]
        yield (
            f"Against a fake server on loopback ({client['date']}, commit {client['commit']}): "
            f"{killed['rows']} rows written through {killed['kills']} SIGKILLs are the same bytes "
            f"as without, with {killed['repeated']} of {killed['requests']} requests sent twice; "
            f"{rate['at_once']} requests at once with {1000 * rate['latency_s']:.0f} ms each reach "
            f"{rate['share_of_ideal']:.0%} of the ideal rate; over the last nine tenths of "
            f"{long['requests']:,} requests memory grew by {long['grown_bytes'] / 1e6:.0f} MB."
        )
        yield ""
    if not real:
        yield "No generation by a real model is committed yet."
        return
    machine = real["machine"]
    yield (
        "With SmolLM2-135M-Instruct as its Q4_1 GGUF unpacks, the default model, as the teacher "
        f"({machine['name']} with {machine['cores']} cores, {real['date']}, commit "
        f"{real['commit']}). It is far too small for this work; it shows that the way holds."
    )
    yield ""
    yield "| questions | asked | distinct | self-BLEU | embedding spread |"
    yield "|---|---|---|---|---|"
    for name, found in real["diversity"].items():
        yield (
            f"| {name} | {found['asked']} | {found['distinct']:.0%} | {found['self_bleu']:.1f} "
            f"| {found['embedding_spread']:.3f} |"
        )
    yield ""
    for name in ("llama.cpp", "retone"):
        found = real[name]
        reasons = ", ".join(f"{count} {why}" for why, count in found["reasons"].items())
        yield (
            f"- {name}'s server as teacher: {found['rows']} rows kept; left out: "
            f"{reasons or 'none'}; {found['spent']}."
        )
    yield ""
    yield "Three of its rows, as they are:"
    for row in real["examples"]:
        yield ""
        yield f"> {' '.join(row['asked'].split())}"
        yield ">"
        yield f"> {' '.join(row['answer'].split())}"
