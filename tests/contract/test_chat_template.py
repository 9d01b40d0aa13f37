"""The template contract, on the templates and tokenizers of real models."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chat_models import (
    DAY,
    DOCUMENTED,
    MERGED,
    MODELS,
    MULTI,
    NO_SYSTEM_ROLE,
    OPENINGS,
    OWN_TOKENIZER,
    REFUSED,
    ROOT,
    SINGLE,
    SMOLLM2,
    TRAINABLE,
    WITH_SYSTEM,
    assert_contract,
    chat,
    each,
    ids_of_transformers,
    template_of,
    tokenizer_of,
    trained_ids,
    trained_runs,
)
from retone.chat_template import ChatTemplate, RowRejected
from retone.conversation import Message
from retone.errors import InputError
from retone.inference.decoding import Row
from retone.inference.engine import TextStream
from retone.inference.sampling import Sampling
from retone.rendering import pin_date, prints_date


@each(TRAINABLE)
@pytest.mark.parametrize("messages", [SINGLE, MULTI], ids=["single", "multi"])
def test_contract(name: str, messages: list[Message]) -> None:
    assert_contract(tokenizer_of(name), template_of(name), messages, OPENINGS.get(name, ""))


@each(TRAINABLE)
def test_contract_with_a_system_message(name: str) -> None:
    template = template_of(name)
    assert template.system == (MERGED if name in NO_SYSTEM_ROLE else "native")
    assert_contract(tokenizer_of(name), template, WITH_SYSTEM, OPENINGS.get(name, ""))
    assert "Be brief." in template.render(WITH_SYSTEM[:2], add_generation_prompt=True)


@each(NO_SYSTEM_ROLE)
def test_a_system_message_without_a_place_stands_before_the_first_question(name: str) -> None:
    merged = chat("Be brief.\n\nHello!", "Good day.")
    template = template_of(name)
    assert template.encode(WITH_SYSTEM) == template.encode(merged)
    assert template.prompt_ids(WITH_SYSTEM[:2]) == template.prompt_ids(merged[:1])
    assert template.encode([Message("system", ""), *SINGLE]) == template.encode(SINGLE)


@each(TRAINABLE)
def test_the_tail_after_the_stop_token_is_masked(name: str) -> None:
    for row in template_of(name).encode(SINGLE):
        (run,) = trained_runs(row)
        assert not any(row.loss_weights[run.stop :])
        assert row.input_ids[run.stop - 1] == template_of(name).stop_id


@each(TRAINABLE)
def test_there_is_no_second_bos(name: str) -> None:
    tokenizer, template = tokenizer_of(name), template_of(name)
    printed = template.render(MULTI, add_generation_prompt=False).count(tokenizer.bos_token or "\0")
    assert printed <= 1
    for ids in (template.prompt_ids(MULTI[:3]), template.encode(MULTI)[-1].input_ids):
        assert ids.count(tokenizer.bos_token_id) == printed


@each(["qwen3", "gpt-oss"])
def test_a_template_that_changes_earlier_turns_makes_a_row_of_each(name: str) -> None:
    template = template_of(name)
    assert template.strategy == "per_turn"
    assert template.strategy_reason
    rows = template.encode(MULTI)
    assert len(rows) == 3
    for row, end in zip(rows, (2, 4, 6), strict=True):
        assert row.input_ids == ids_of_transformers(tokenizer_of(name), template, MULTI[:end])
        assert len(trained_runs(row)) == 1
        assert template.parse(trained_ids(row)) == MULTI[end - 1].content


@each([name for name in TRAINABLE if name not in ("qwen3", "gpt-oss")])
def test_any_other_template_keeps_a_conversation_in_one_row(name: str) -> None:
    template = template_of(name)
    assert (template.strategy, template.strategy_reason) == ("whole", "")
    (row,) = template.encode(MULTI)
    assert [template.parse([row.input_ids[at] for at in run]) for run in trained_runs(row)] == [
        message.content for message in MULTI[1::2]
    ]


def test_messages_after_the_last_answer_stay_in_the_row_and_are_masked() -> None:
    template = template_of("smollm2")
    messages = [*SINGLE, Message("user", "Thanks.")]
    (row,) = template.encode(messages)
    assert row.input_ids == ids_of_transformers(tokenizer_of("smollm2"), template, messages)
    assert template.parse(trained_ids(row)) == SINGLE[1].content


# --- what ends an answer


@pytest.mark.parametrize(
    ("name", "stop", "others"),
    [
        ("phi-3", "<|end|>", {"<|endoftext|>"}),
        ("phi-3.5", "<|end|>", {"<|endoftext|>"}),
        ("gpt-oss", "<|return|>", {"<|call|>"}),
        ("llama-3.1", "<|eot_id|>", set()),
        ("gemma-2", "<end_of_turn>", {"<eos>"}),
        ("tinyllama", "</s>", set()),
    ],
)
def test_the_stop_token_is_the_one_after_the_answer(name: str, stop: str, others: set[str]) -> None:
    tokens = tokenizer_of(name).convert_ids_to_tokens
    assert tokens(template_of(name).stop_id) == stop
    assert set(tokens(sorted(template_of(name).stop_ids))) == {stop, *others}


def test_phi_3_stops_on_its_end_token_although_another_one_pads_and_ends_texts() -> None:
    tokenizer, template = tokenizer_of("phi-3"), template_of("phi-3")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 32000
    assert template.stop_id == 32007
    assert template.stop_ids == {32000, 32007}
    (row,) = template.encode(SINGLE)
    assert row.input_ids[-2:] == (32007, 32000)
    assert row.loss_weights[-2:] == (1.0, 0.0)


# --- contents: each holds, loses white space around it, or the row is rejected with a reason

TRIMS = {"gemma-2", "llama-3", "llama-3.1", "llama-3.2"}  # the template
SWALLOWS = {"phi-3", "phi-3.5", "phi-3-as-file"}  # the token before an answer, white space after it
JOINS = {"smollm2", "qwen2.5"}  # the line break before an answer, line breaks that begin it
DROPS = {"smollm3", "qwen3"}  # the template, line breaks that begin an answer
COMPOSES = {name for name in TRAINABLE if MODELS[name].vocabulary == "qwen3"}
CONTENTS: dict[str, tuple[str, set[str]]] = {  # models that reject the content
    "unicode": ("Zoë läuft, 中文 и 🦜👩‍👩‍👧", set()),
    "newlines": ("one\ntwo\n\nthree\n\n\nfour", set()),
    "tabs": ("a\t\tb  c\r\nd", set()),
    "empty": ("", set()),
    "decomposed-accent": ("cafe\u0301", COMPOSES),
    "space-marker": ("a\u2581b", SWALLOWS | {"tinyllama"}),
}
SURROUNDED: dict[str, tuple[str, set[str]]] = {  # models that lose the white space
    "leading-space": ("  two before", TRIMS | SWALLOWS),
    "trailing-space": ("two after  ", TRIMS),
    "only-space": ("  ", TRIMS | SWALLOWS),
    "leading-newline": ("\nbelow", TRIMS | SWALLOWS | JOINS | DROPS),
    "trailing-newline": ("above\n", TRIMS),
}


@each(TRAINABLE)
@pytest.mark.parametrize("kind", CONTENTS)
def test_content(name: str, kind: str) -> None:
    content, rejecting = CONTENTS[kind]
    messages = chat("Say it.", content)
    if name not in rejecting:
        assert_contract(tokenizer_of(name), template_of(name), messages, OPENINGS.get(name, ""))
        return
    with pytest.raises(RowRejected) as rejected:
        template_of(name).encode(messages)
    assert rejected.value.reason == "tokens-do-not-invert"
    assert rejected.value.detail


@each(TRAINABLE)
@pytest.mark.parametrize("kind", SURROUNDED)
def test_white_space_around_an_answer_is_kept_or_stripped_where_it_would_be_lost(
    name: str, kind: str
) -> None:
    content, losing = SURROUNDED[kind]
    template, written = template_of(name), chat("Say it.", content)
    kept = chat("Say it.", content.strip()) if name in losing else written
    assert template.strips(written) == (name in losing)
    assert not template.strips(kept)
    rows = assert_contract(tokenizer_of(name), template, kept, OPENINGS.get(name, ""))
    assert template.encode(written, source="chats.jsonl", row=7) == rows


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("llama-3.1", "white space before and after"),
        ("gemma-2", "white space before and after"),
        ("phi-3", "white space before"),
        ("smollm2", "line breaks before"),
        ("tinyllama", ""),
    ],
)
def test_what_a_template_trims_is_said_in_words(name: str, words: str) -> None:
    assert str(template_of(name).trim) == words
    assert template_of(name).trims == bool(words)


def test_white_space_around_questions_is_left_alone() -> None:
    messages = chat("  Where?  ", "There.")
    assert not template_of("phi-3").strips(messages)
    assert_contract(tokenizer_of("phi-3"), template_of("phi-3"), messages)


WORDS = st.lists(st.text("abcxyzÄé.,!?'中", min_size=1, max_size=8), min_size=1, max_size=8)
FEW = settings(
    max_examples=20,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@each(OWN_TOKENIZER)
@FEW
@given(words=WORDS)
def test_any_words_hold(name: str, words: list[str]) -> None:
    messages = chat(" ".join(words[::-1]), " ".join(words), "More.", "\n".join(words))
    assert_contract(tokenizer_of(name), template_of(name), messages, OPENINGS.get(name, ""))


@each(OWN_TOKENIZER)
@FEW
@given(content=st.text(max_size=30))
def test_any_text_holds_or_is_rejected(name: str, content: str) -> None:
    messages = chat(f"Repeat: {content}", content)
    try:
        template_of(name).encode(messages)
    except RowRejected as rejected:
        reason = rejected.reason
    else:
        reason = "holds"
        kept = [messages[0], Message("assistant", template_of(name).trim.of(content))]
        assert_contract(tokenizer_of(name), template_of(name), kept, OPENINGS.get(name, ""))
    broken = {"content-changed", "tokens-merge-at-answer", "tokens-do-not-invert"}
    assert reason in {"holds", *broken}


# --- special tokens in contents


@pytest.mark.parametrize(
    ("name", "token"),
    [("qwen3", "<|im_end|>"), ("phi-3", "<|end|>"), ("phi-3", "<|endoftext|>"), ("gpt-oss", "")],
)
def test_an_answer_that_spells_a_stop_token_is_rejected(name: str, token: str) -> None:
    token = token or tokenizer_of(name).eos_token
    with pytest.raises(RowRejected) as rejected:
        template_of(name).encode(chat("What ends a turn?", f"The token {token} does."))
    assert rejected.value.reason == "stop-token-in-answer"


def test_an_answer_may_spell_another_special_token() -> None:
    messages = chat("What begins a turn?", "The token <|im_start|> does.")
    (row,) = assert_contract(tokenizer_of("smollm2"), template_of("smollm2"), messages)
    start = tokenizer_of("smollm2").convert_tokens_to_ids("<|im_start|>")
    assert start in trained_ids(row)


def test_a_question_may_spell_a_stop_token() -> None:
    messages = chat("What is <|im_end|> for?", "It ends a turn.")
    assert_contract(tokenizer_of("smollm2"), template_of("smollm2"), messages)


# --- loss weights


def test_a_turn_of_weight_0_is_context_only() -> None:
    messages = [MULTI[0], dataclasses.replace(MULTI[1], loss_weight=0.0), *MULTI[2:4]]
    for name in ("llama-3.1", "qwen3"):
        opening = OPENINGS.get(name, "")
        (row,) = assert_contract(tokenizer_of(name), template_of(name), messages, opening)
        assert template_of(name).parse(trained_ids(row)) == MULTI[3].content


def test_a_turn_carries_its_own_weight() -> None:
    messages = [MULTI[0], dataclasses.replace(MULTI[1], loss_weight=0.25), *MULTI[2:4]]
    (row,) = assert_contract(tokenizer_of("llama-3.1"), template_of("llama-3.1"), messages)
    assert [row.loss_weights[run.start] for run in trained_runs(row)] == [0.25, 1.0]


# --- rejected rows


@pytest.mark.parametrize(
    ("name", "messages", "reason", "detail"),
    [
        ("smollm2", chat("Hello?"), "no-assistant-turn", "1 messages"),
        ("smollm2", [], "no-assistant-turn", "0 messages"),
        (
            "smollm2",
            [SINGLE[0], Message("assistant", "Masked.", loss_weight=0)],
            "nothing-trained",
            "weight 0",
        ),
        (
            "smollm2",
            [Message("user", "Hi", loss_weight=1), SINGLE[1]],
            "weight-on-other-role",
            "by user",
        ),
        ("smollm2", [Message("assistant", "Hi!")], "no-prompt", "begins with"),
        ("smollm2", chat("Hi", "half a pair: \ud83d"), "not-unicode", "surrogate"),
        ("gemma-2", [*SINGLE, SINGLE[1]], "template-error", "must alternate"),
        (
            "gemma-2",
            [Message("system", "Be brief."), Message("assistant", "Hi!")],
            "system-not-rendered",
            "no user turn",
        ),
        ("qwen3", chat("Hi", "Hm.</think>Yes."), "content-changed", "Hm."),
    ],
    ids=lambda value: value if isinstance(value, str) and value.isascii() else "",
)
def test_rejected_row(name: str, messages: list[Message], reason: str, detail: str) -> None:
    with pytest.raises(RowRejected, match=reason) as rejected:
        template_of(name).encode(messages)
    assert rejected.value.reason == reason
    assert detail in rejected.value.detail


# --- refused templates

CHATML_LOOP = "{% for m in messages %}<|im_start|>{{ m.role }}\n%s<|im_end|>\n{% endfor %}"
CHATML_PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chatml(content: str) -> str:
    """A ChatML template that writes `content` for each message m."""
    return CHATML_LOOP.replace("%s", content) + CHATML_PROMPT


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (chatml("{{ m.content | upper }}"), "content-changed"),
        (chatml("{{ m.content }}").replace("<|im_end|>", "(over)"), "no-stop-token"),
        (
            chatml("{{ m.content }}")
            .replace("{{ m.role }}\n", "{{ m.role }}: ")
            .replace("assistant\n", "assistant: "),
            "tokens-merge-at-answer",
        ),
        (chatml("{{ m.content }}") + "<think>", "prompt-not-prefix"),
        ("{% for m in messages %}", "template-error"),
    ],
)
def test_refused_template(template: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("qwen3")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(InputError, match="Crafted") as refused:
        ChatTemplate(tokenizer, name="Crafted")
    assert refused.value.code == "template-refused"
    assert refused.value.found.startswith(f"{reason}: ")


def test_a_turn_that_ends_unlike_the_probe_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("qwen3")
    moody = chatml("{{ m.content }}").replace("|im_end|>\n", "|im_end|>{{ '!' in m.content }}\n")
    monkeypatch.setattr(tokenizer, "chat_template", moody)
    template = ChatTemplate(tokenizer)
    assert_contract(tokenizer, template, SINGLE)
    with pytest.raises(RowRejected, match="no-stop-token"):
        template.encode(chat("Hello?", "Hello!"))


@each(REFUSED)
def test_refused_model(name: str) -> None:
    reason = {"deepseek-r1-distill": "prompt-not-prefix", "hermes-3-tools": "template-error"}[name]
    with pytest.raises(InputError) as refused:
        template_of(name)
    assert refused.value.code == "template-refused"
    assert refused.value.found.startswith(f"{reason}: ")


@pytest.mark.parametrize("template", [None, {"tool_use": chatml("{{ m.content }}")}])
def test_a_tokenizer_without_a_chat_template_is_refused(
    template: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_of("qwen3"), "chat_template", template)
    with pytest.raises(InputError) as refused:
        ChatTemplate(tokenizer_of("qwen3"))
    assert refused.value.code == "no-chat-template"


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        def __getattr__(self, name: str) -> Any:
            if name == "backend_tokenizer":
                raise AttributeError(name)
            return getattr(tokenizer_of("qwen3"), name)

    with pytest.raises(InputError, match="slow-tokenizer") as refused:
        ChatTemplate(Slow())
    assert refused.value.code == "template-refused"


# --- thinking and other openings


def test_a_thinking_block_in_one_conversation_makes_rows_of_its_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = tokenizer_of("qwen3")
    forgetful = "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
    monkeypatch.setattr(tokenizer, "chat_template", chatml(forgetful))
    template = ChatTemplate(tokenizer)
    assert template.strategy == "whole"
    assert len(assert_contract(tokenizer, template, MULTI)) == 1
    thinking = chat("Two and two?", "<think>Count.</think>Four.", "And one?", "Five.")
    assert len(assert_contract(tokenizer, template, thinking)) == 2


def test_an_answer_that_brings_its_own_thinking_is_trained_whole_and_read_without_it() -> None:
    template = template_of("qwen3")
    content = "<think>\nA mat, then a key.\n</think>\n\nUnder the mat."
    (row,) = template.encode(chat("Where is the key?", content))
    assert tokenizer_of("qwen3").decode(trained_ids(row)) == f"{content}<|im_end|>"
    assert template.parse(trained_ids(row)) == "Under the mat."


@pytest.mark.parametrize(
    ("name", "generated", "answer"),
    [
        ("qwen3", "<think>\nLet me see.\n</think>\n\nYes.<|im_end|>", "Yes."),
        ("qwen3", "<think>\nLet me see", "<think>\nLet me see"),
        ("qwen3", "Yes.<|im_end|>\n<|im_start|>user", "Yes."),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
            "<|channel|>final<|message|>Yes.<|return|>",
            "Yes.",
        ),
        ("phi-3", "Yes.<|endoftext|>", "Yes."),
        ("phi-3", "Yes.<|end|><|endoftext|>No.", "Yes."),
        ("llama-3.1", "No end in sight", "No end in sight"),
        ("llama-3.1", "", ""),
    ],
)
def test_parse(name: str, generated: str, answer: str) -> None:
    ids = tokenizer_of(name)(generated, add_special_tokens=False)["input_ids"]
    assert template_of(name).parse(ids) == answer


@pytest.mark.parametrize(
    ("name", "generated", "pieces"),
    [
        ("qwen3", "<think>\nLet me see.\n</think>\n\nYes, it is.<|im_end|>", "Yes, it is."),
        ("qwen3", "<thin ice>", "<thin ice>"),
        ("qwen3", "Yes, it is.", "Yes, it is."),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>Let me see.<|end|><|start|>assistant"
            "<|channel|>final<|message|>Yes, it is.<|return|>",
            "Yes, it is.",
        ),
    ],
)
def test_thinking_is_held_back_while_it_is_written(name: str, generated: str, pieces: str) -> None:
    ids = tokenizer_of(name)(generated, add_special_tokens=False)["input_ids"]
    stream, row, told = TextStream(template_of(name).parse), Row((), Sampling()), []
    for at, token in enumerate(ids, 1):
        row.ids.append(token)
        row.finished = at == len(ids)
        told.append(stream.next(row))
    assert "".join(told) == pieces
    assert sum(map(bool, told)) > 1  # piece by piece, not at the end


@each(OWN_TOKENIZER)
def test_parse_survives_half_a_character(name: str) -> None:
    ids = tokenizer_of(name)("🦜", add_special_tokens=False)["input_ids"]
    for cut in (ids[:-1], ids[-1:]):
        assert "\ufffd" in template_of(name).parse(cut)


def test_text_between_the_answer_and_its_stop_token_is_trained_and_not_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenizer = tokenizer_of("qwen3")
    monkeypatch.setattr(tokenizer, "chat_template", chatml("{{ m.content }}\nEND\n"))
    template = ChatTemplate(tokenizer)
    (row,) = template.encode(SINGLE)
    assert tokenizer.decode(trained_ids(row)) == f"{SINGLE[1].content}\nEND\n<|im_end|>"
    assert template.parse(trained_ids(row)) == SINGLE[1].content


# --- dates


def test_a_template_that_prints_the_date_prints_the_pinned_one() -> None:
    for name, printed in (("llama-3.2", "26 Jul 2024"), ("gpt-oss", "2024-07-26")):
        template = template_of(name)
        assert template.date == DAY
        assert f"ate: {printed}\n" in template.render(SINGLE, add_generation_prompt=True)
        assert prints_date(tokenizer_of(name).chat_template)
        later = ChatTemplate(tokenizer_of(name), date=datetime.date(2025, 1, 2))
        assert later.prompt_ids(SINGLE[:1]) != template.prompt_ids(SINGLE[:1])


def test_without_a_date_today_is_pinned() -> None:
    before = datetime.date.today()
    template = ChatTemplate(tokenizer_of("llama-3.2"))
    assert template.date in {before, datetime.date.today()}


def test_a_template_that_prints_no_date_has_none() -> None:
    assert not prints_date(tokenizer_of("smollm2").chat_template)
    assert template_of("smollm2").date is None
    assert template_of("smollm2").text == tokenizer_of("smollm2").chat_template


@pytest.mark.parametrize(
    "code", ["%d %b %Y", "%Y-%m-%d", "%A, %B %d, %Y", "%-d %B", "%H:%M:%S", "%F %T", "%j, 5 %%"]
)
@pytest.mark.parametrize("day", [DAY, datetime.date(2025, 2, 3)])
def test_a_pinned_date_prints_as_the_calendar_does(code: str, day: datetime.date) -> None:
    template = pin_date(f"{{{{ strftime_now({code!r}) }}}}", day)
    printed = tokenizer_of("qwen3").apply_chat_template(
        [{"role": "user", "content": "Hi"}], chat_template=template, tokenize=False
    )
    assert printed == datetime.datetime.combine(day, datetime.time()).strftime(code)


def test_pinning_changes_nothing_but_the_date() -> None:
    template = "  {% if true %}a{% endif %}\n  b {{ '%' }}\n"
    hello = [{"role": "user", "content": "Hi"}]
    for text in (template, f"\n{template}"):
        plain, pinned = (
            tokenizer_of("qwen3").apply_chat_template(hello, chat_template=each, tokenize=False)
            for each in (text, pin_date(text, DAY))
        )
        assert plain == pinned


# --- the lock


def test_a_lock_is_json_and_verifies() -> None:
    for name in TRAINABLE:
        lock = template_of(name).lock([SINGLE[:1], MULTI[:3]])
        assert template_of(name).verify_lock(json.loads(json.dumps(lock))) == []


def test_a_lock_notices_a_changed_template(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("smollm2")
    lock = template_of("smollm2").lock([SINGLE[:1], WITH_SYSTEM[:2]])
    monkeypatch.setattr(tokenizer, "chat_template", SMOLLM2.replace("helpful", "gloomy"))
    template, prompt = ChatTemplate(tokenizer).verify_lock(lock)
    assert template.startswith("template_sha256 is ")
    assert prompt == "prompt 1 does not give the ids of the lock"


def test_a_lock_notices_another_date_and_other_stop_tokens() -> None:
    lock = template_of("llama-3.2").lock([SINGLE[:1]])
    later = ChatTemplate(tokenizer_of("llama-3.2"), date=datetime.date(2025, 1, 2))
    assert [line.split()[0] for line in later.verify_lock(lock)] == ["date", "prompt"]
    assert template_of("llama-3.2").verify_lock({**lock, "stop_ids": [2]}) == [
        "stop_ids is [128009], the lock has [2]"
    ]


def test_a_lock_notices_a_prompt_that_is_refused() -> None:
    lock = template_of("smollm2").lock([[SINGLE[0], SINGLE[0]]])
    assert "prompt 1 does not give the ids of the lock" in template_of("gemma-2").verify_lock(lock)


# --- the module and its documentation


def test_the_module_loads_without_torch_and_transformers() -> None:
    code = (
        "import sys, retone.chat_template\n"
        "sys.exit(', '.join({'torch', 'transformers'} & set(sys.modules)) or 0)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True)
    assert run.returncode == 0, run.stderr.decode()


def test_every_reason_is_documented() -> None:
    sources = (ROOT / "src" / "retone").glob("*.py")
    reasons = set(
        re.findall(r'RowRejected\(\s*"([a-z-]+)"', "".join(path.read_text() for path in sources))
    )
    page = (ROOT / "docs" / "chat_templates.md").read_text()
    section = page.partition("## Rejected rows")[2].partition("\n## ")[0]
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", section, re.M))
    assert reasons == documented


def documented_table() -> str:
    """The Markdown table of what the code finds in each template."""

    def cell(text: str) -> str:
        return "`" + text.replace("|", "\\|").replace("`", "'") + "`"

    heads = ("template", "vocabulary", "rows", "stop token", "system message")
    heads += ("white space lost", "thinking", "tool calls", "why")
    lines: list[tuple[str, ...]] = [heads, ("---",) * len(heads)]
    for name in DOCUMENTED:
        model = MODELS[name]
        vocabulary = "stand-in" if model.stand_in else "its own"
        try:
            template = template_of(name)
        except InputError as refused:
            lines.append((model.title, vocabulary, "refused", *["none"] * 5, cell(refused.found)))
            continue
        rows = {"whole": "whole", "per_turn": "one per turn"}[template.strategy]
        stop = cell(tokenizer_of(name).convert_ids_to_tokens(template.stop_id))
        why = cell(template.strategy_reason) if template.strategy_reason else ""
        facts = (str(template.trim) or "none", "yes" if template.thinking else "no")
        calls = "no" if template.no_calls else "yes"
        lines.append((model.title, vocabulary, rows, stop, template.system, *facts, calls, why))
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |") for line in lines)


def test_the_documented_table_is_what_the_code_finds() -> None:
    table = documented_table()
    assert table in (ROOT / "docs" / "chat_templates.md").read_text(), f"replace it by\n\n{table}\n"
