"""Public files of other tools and of this project are recognised, or refused with what to type."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

import format_table
from findings_table import VERDICTS, findings_page
from format_table import formats_page
from retone.config import SourceSection
from retone.conversation import Conversation, Document, Preference
from retone.data.formats import Sample, convert, detect_shape
from retone.data.sources import BadRows, Item, read_items

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
DATA = SHARED / "data"
VECTORS = DATA / "golden" / "trl_sft_vectors.json"

needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"no test data in {DATA}")

# Shape and rows of every file that is read without settings.
SHAPES = {
    "style/gpteacher_roleplay.json": ("alpaca", 3146),
    "style/yoda_sentences.csv": ("pair", 612),
    "instruct/alpaca_en_demo.json": ("alpaca", 999),
    "instruct/dummy_conversation.json": ("sharegpt", 500),
    "instruct/glaive_toolcall_en_demo.json": ("sharegpt", 300),
    "instruct/rasbt/eval-example-data.json": ("alpaca", 100),
    "instruct/rasbt/instruction-data-with-preference.json": ("preference", 1100),
    "instruct/rasbt/instruction-data-with-response.json": ("alpaca", 110),
    "instruct/rasbt/instruction-data.json": ("alpaca", 1100),
    "instruct/rasbt/instruction-examples.json": ("alpaca", 200),
    "instruct/seed_tasks.jsonl": ("seed", 175),
    "qa/ARC-Easy.train.json": ("alpaca", 2251),
    "qa/NQ-open.dev.jsonl": ("qa", 3610),
    "qa/inspect_examples/biology_qa.jsonl": ("qa", 20),
    "qa/inspect_examples/security_guide.jsonl": ("pair", 16),
    "qa/inspect_examples/theory_of_mind.jsonl": ("pair", 100),
    "qa/mt_bench_question.jsonl": ("prompts", 80),
    "text/the-verdict.txt": ("text", 1),
    "text/tinyshakespeare_input.txt": ("text", 1),
    "golden/formats/chat_tiny.json": ("sharegpt", 1),
    "golden/formats/hh_rlhf_tiny.json": ("preference", 1),
    "golden/formats/instruct_tiny.json": ("pair", 2),
    "golden/formats/litgpt__alpaca.json": ("alpaca", 23),
    "golden/formats/litgpt__dolly.json": ("alpaca", 12),
    "golden/formats/ms-swift__alpaca.csv": ("alpaca", 3),
    "golden/formats/ms-swift__alpaca.jsonl": ("alpaca", 3),
    "golden/formats/ms-swift__chatml.jsonl": ("messages", 3),
    "golden/formats/ms-swift__conversations.jsonl": ("sharegpt", 3),
    "golden/formats/ms-swift__sharegpt.jsonl": ("sharegpt", 3),
    "golden/formats/ms-swift__swift_multi.jsonl": ("pair", 3),
    "golden/formats/oumi__alpaca_format.jsonl": ("alpaca", 2),
    "golden/formats/oumi__oumi_format.jsonl": ("messages", 2),
    "golden/formats/synthetic-data-kit__sample.txt": ("text", 1),
    "golden/formats/synthetic-data-kit__sample_qa_pairs.json": ("qa", 4),
    "golden/formats/tinker-cookbook__conversations.jsonl": ("messages", 128),
}
# Files without a shape of their own, and what the error says to type.
REFUSED = {
    "style/filters_styles_720.jsonl": '--set \'data.columns={prompt="plain", completion="pirate"}',
    "style/public_kjv_bbe_web_ylt_2000.jsonl": '{prompt="kjv", completion="bbe"}',
    "instruct/identity.json": '--set \'data.values={name="...", author="..."}\'',
    "qa/judge_prompts.jsonl": '{prompt="system_prompt", completion="prompt_template"}',
}


@pytest.fixture(scope="module")
def accounts() -> list[tuple[str, dict[str, Any], format_table.Account]]:
    return format_table.accounts(SHARED)


@needs_data
def test_every_file_is_recognised_or_refused(accounts: list[Any]) -> None:
    plain = {name: account for name, settings, account in accounts if not settings}
    assert plain.keys() == SHAPES.keys() | REFUSED.keys()
    shapes = {name: (account.shape, account.read) for name, account in plain.items()}
    assert {name: shapes[name] for name in SHAPES} == SHAPES
    for name, flag in REFUSED.items():
        assert plain[name].shape == ""
        assert flag in plain[name].evidence


@needs_data
def test_every_row_is_accounted_for(accounts: list[Any]) -> None:
    for name, settings, account in accounts:
        assert account.read == account.used + account.dropped.total(), (name, settings)
        assert account.read > 0
    unused = {name for name, settings, account in accounts if account.shape and account.dropped}
    assert unused == {"qa/mt_bench_question.jsonl", "qa/judge_prompts.jsonl"}


@needs_data
def test_settings_make_refused_files_readable(accounts: list[Any]) -> None:
    given = {name: account for name, settings, account in accounts if settings}
    assert given.keys() >= REFUSED.keys()
    assert all(account.shape for account in given.values())


@needs_data
def test_the_pages_are_up_to_date(accounts: list[Any]) -> None:
    for name, made in (("formats", formats_page), ("findings", findings_page)):
        page = (ROOT / "docs" / f"{name}.md").read_text("utf-8")
        assert page == made(accounts), "python docs/generate.py"


@needs_data
def test_every_alarm_on_the_test_data_was_looked_at(accounts: list[Any]) -> None:
    """A new alarm, or one that no longer fires, needs another verdict in docs/findings_table.py."""
    alarms = {(name, code) for name, _, account in accounts for code in account.alarms}
    assert alarms == VERDICTS.keys()


def samples(path: Path, **settings: Any) -> list[Sample]:
    bad = BadRows()
    source = SourceSection(path=str(path), **settings)
    items = list(read_items(source, bad))
    shape = detect_shape([item.values for item in items[:64]], source, path.name)
    found = list(convert(items, shape, system=None, values={}, bad=bad))
    assert bad.texts == []
    return found


@needs_data
def test_tool_calls_of_glaive_are_all_read() -> None:
    path = DATA / "instruct" / "glaive_toolcall_en_demo.json"
    rows = json.loads(path.read_text("utf-8"))
    called = [t for row in rows for t in row["conversations"] if t["from"] == "function_call"]
    found = [sample for sample in samples(path) if isinstance(sample, Conversation)]
    messages = [message for sample in found for message in sample.messages]
    calls = [call["function"] for message in messages for call in message.tool_calls]
    assert calls == [json.loads(turn["value"]) for turn in called]
    assert sum(bool(sample.tools) for sample in found) == 191
    answers = [message for message in messages if message.role == "tool"]
    assert [message.name for message in answers] == [call["name"] for call in calls]


@needs_data
def test_short_answers_of_natural_questions_are_kept() -> None:
    path = DATA / "qa" / "NQ-open.dev.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for row, sample in zip(rows, samples(path), strict=True):
        assert isinstance(sample, Conversation)
        assert sample.answer == row["answer"][0]
        assert sample.extra == {"answers": row["answer"]}


@needs_data
def test_multiple_choice_keeps_its_key() -> None:
    (first, *_) = samples(DATA / "qa" / "ARC-Easy.train.json")
    assert isinstance(first, Conversation)
    assert (first.answer, first.extra) == ("the correct answer is answer2", {"answer": "answer2"})


@needs_data
def test_preferences_keep_both_answers() -> None:
    path = DATA / "instruct" / "rasbt" / "instruction-data-with-preference.json"
    rows = json.loads(path.read_text("utf-8"))
    for row, sample in zip(rows, samples(path), strict=True):
        assert isinstance(sample, Preference)
        assert sample.chosen is not None
        assert sample.rejected is not None
        assert (sample.chosen.content, sample.rejected.content) == (row["chosen"], row["rejected"])
        assert sample.extra == {"output": row["output"]}


@needs_data
def test_documents_hold_the_whole_text() -> None:
    path = DATA / "text" / "the-verdict.txt"
    pieces = [sample.text for sample in samples(path) if isinstance(sample, Document)]
    assert " ".join(pieces).split() == path.read_text("utf-8").split()
    assert [piece[:6] for piece in pieces[:1]] == ["I HAD "]


# The conversion cases of TRL's own tests


def trl(name: str) -> Any:
    return json.loads(VECTORS.read_text())["formats"][name] if VECTORS.exists() else []


def convert_rows(*rows: dict[str, Any]) -> list[Any]:
    bad = BadRows()
    source = SourceSection(path="trl")
    shape = detect_shape(rows, source, "trl")
    items = [Item(row, "trl", number) for number, row in enumerate(rows, 1)]
    found = list(convert(items, shape, system=None, values={}, bad=bad))
    assert bad.texts == []
    return found


@needs_data
def test_trl_conversational_rows() -> None:
    for row in trl("is_conversational")["conversational_examples"]:
        if "tools" in row:
            continue
        (sample,) = convert_rows(row)
        given = row.get("messages") or [*row.get("prompt", []), *row.get("completion", [])]
        if "chosen" in row or "label" in row:
            assert isinstance(sample, Preference)
            given = [*row.get("prompt", []), *(row.get("chosen") or row["completion"])]
            messages = [*sample.prompt, sample.chosen]
        else:
            messages = list(sample.messages)
        expected = [(m["role"], m["content"], m.get("thinking", "")) for m in given]
        assert [(m.role, m.content, m.thinking) for m in messages] == expected


@needs_data
def test_trl_preferences_over_several_turns_are_refused() -> None:
    (row,) = [r for r in trl("is_conversational")["conversational_examples"] if "tools" in r]
    bad = BadRows()
    shape = detect_shape([row], SourceSection(path="trl"), "trl")
    assert not list(convert([Item(row, "trl", 1)], shape, system=None, values={}, bad=bad))
    assert "field chosen: one answer after a shared prompt is expected" in bad.texts[0]


@needs_data
def test_trl_plain_rows() -> None:
    shapes = {}
    for row in trl("is_conversational")["non_conversational_examples"]:
        shapes[tuple(row)] = detect_shape([row], SourceSection(path="trl"), "trl").name
        assert len(convert_rows(row)) == 1
    assert shapes == {
        ("prompt", "completion"): "pair",
        ("text",): "text",
        ("prompt",): "prompts",
        ("prompt", "chosen", "rejected"): "preference",
        ("prompt", "completion", "label"): "preference",
    }


@needs_data
@pytest.mark.parametrize("kind", ["conversational", "standard"])
def test_trl_implicit_prompts_equal_explicit_ones(kind: str) -> None:
    cases = trl("extract_prompt")
    implicit = convert_rows(cases[f"example_implicit_prompt_{kind}"])
    explicit = convert_rows(cases[f"example_explicit_prompt_{kind}"])
    assert implicit == explicit


@needs_data
def test_trl_paired_rows_say_what_unpaired_ones_say() -> None:
    def rows(table: dict[str, list[Any]]) -> list[dict[str, Any]]:
        columns = zip(*table.values(), strict=True)
        return [dict(zip(table, values, strict=True)) for values in columns]

    cases = trl("unpair_preference")
    paired = convert_rows(*rows(cases["paired_dataset"]))
    verdicts = convert_rows(*rows(cases["unpaired_dataset"]))
    good = [(v.prompt, v.chosen) for v in verdicts if v.chosen]
    bad = [(v.prompt, v.rejected) for v in verdicts if v.rejected]
    assert good == [(p.prompt, p.chosen) for p in paired]
    assert bad == [(p.prompt, p.rejected) for p in paired]


@needs_data
def test_trl_chatml_conversion() -> None:
    for case in trl("maybe_convert_to_chatml"):
        found = [sample_content(s) for s in convert_rows(case["example"])]
        assert found == [sample_content(s) for s in convert_rows(case["expected_output"])]


def sample_content(sample: Sample) -> Any:
    return sample.text if isinstance(sample, Document) else getattr(sample, "messages", sample)


# The project's own data

BUNDLED = Path(str(resources.files("retone") / "datasets"))
OWN = {
    "yoda": ("pair", {"prompt": "plain", "completion": "yoda"}),
    "bookings": ("pair", {"prompt": "message", "completion": "form"}),
    "handbook": ("qa", {}),
    "lamplight": ("sharegpt", {}),
    "notebook": ("alpaca", {}),
}


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("split", ["train", "test"])
def test_bundled_datasets(name: str, split: str) -> None:
    shape, columns = OWN[name]
    path = BUNDLED / name / f"{split}.jsonl"
    account = format_table.account_of(path, columns=columns)
    assert (account.shape, account.used) == (shape, account.read)
