"""Rows with two answers, or one and a verdict, in the spellings of many tools."""

from __future__ import annotations

import pytest

from retone.conversation import Message, Preference
from row_reading import BE_KIND, HI, TOOL, WRAPPED_TOOL, Row, one, problem, read, said

BETTER, WORSE = Message("assistant", "Good day!"), Message("assistant", "What?")
REJECTED = [HI[0], {"role": "assistant", "content": "What?"}]
SHAREGPT_HI = [{"from": "human", "value": "Hi"}]
PREFERENCES: dict[str, Row] = {
    "texts": {"prompt": "Hi", "chosen": "Good day!", "rejected": "What?"},
    "TRL conversational": {"prompt": HI[:1], "chosen": HI[1:], "rejected": REJECTED[1:]},
    "TRL implicit prompt": {"chosen": HI, "rejected": REJECTED},
    "UltraFeedback": {
        "prompt": "Hi", "prompt_id": "p", "chosen": HI, "rejected": REJECTED, "messages": HI,
        "score_chosen": 8.0, "score_rejected": 2.0,
    },
    "HH-RLHF": {
        "chosen": "\n\nHuman: Hi\n\nAssistant: Good day!",
        "rejected": "\n\nHuman: Hi\n\nAssistant: What?",
    },
    "LlamaFactory ranking": {
        "conversations": SHAREGPT_HI, "chosen": {"from": "gpt", "value": "Good day!"},
        "rejected": {"from": "gpt", "value": "What?"},
    },
    "instruction and input": {
        "instruction": "Hi", "input": "", "output": "x", "chosen": "Good day!",
        "rejected": "What?",
    },
    "two outputs": {"instruction": "Hi", "input": "", "output": ["Good day!", "What?"]},
    "Orca DPO": {"question": "Hi", "chosen": "Good day!", "rejected": "What?"},
    "distilabel": {
        "prompt": "Hi", "chosen_response": "Good day!", "rejected_response": "What?",
    },
    "OpenAI": {
        "input": {"messages": HI[:1]}, "preferred_output": HI[1:],
        "non_preferred_output": REJECTED[1:],
    },
    "ms-swift": {"messages": HI, "rejected_response": "What?"},
    "ms-swift query": {"query": "Hi", "response": "Good day!", "rejected_response": "What?"},
}  # fmt: skip


@pytest.mark.parametrize("name", PREFERENCES)
def test_preferences_of_many_tools(name: str) -> None:
    found = one(PREFERENCES[name])
    assert isinstance(found, Preference)
    assert said(found.prompt) == [("user", "Hi")]
    assert (found.chosen, found.rejected) == (BETTER, WORSE)
    assert read(PREFERENCES[name]).shape.name == "preference"


def test_a_long_prompt_is_what_both_answers_share() -> None:
    longer = [{"role": "system", "content": "Be kind."}, *HI, {"role": "user", "content": "Bye"}]
    sides = {
        key: [*longer, {"role": "assistant", "content": key}] for key in ("chosen", "rejected")
    }
    for row in (sides, {"prompt": "Bye", **sides}):
        found = one(row)
        assert len(found.prompt) == 4
        assert (found.chosen.content, found.rejected.content) == ("chosen", "rejected")


def test_system_and_tools_of_a_preference() -> None:
    row = {"prompt": "Hi", "chosen": "a", "rejected": "b", "system": "Be kind.", "tools": [TOOL]}
    found = one(row)
    assert said(found.prompt) == [BE_KIND, ("user", "Hi")]
    assert found.tools == (WRAPPED_TOOL,)
    given = {"messages": HI[:1], "tools": [TOOL]}
    row = {"input": given, "preferred_output": HI[1:], "non_preferred_output": REJECTED[1:]}
    assert one(row).tools == (WRAPPED_TOOL,)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Good day!"},
        {"messages": HI},
        {"conversations": [*SHAREGPT_HI, {"from": "gpt", "value": "Good day!"}]},
        {"instruction": "Hi", "input": "", "output": "Good day!"},
        {"query": "Hi", "response": "Good day!"},
    ],
)
@pytest.mark.parametrize("column", ["label", "kto_tag"])
@pytest.mark.parametrize("wrong", [False, 0, "False"])
def test_verdicts(row: Row, column: str, wrong: object) -> None:
    good, bad = one({**row, column: True}), one({**row, column: wrong})
    assert said(good.prompt) == said(bad.prompt) == [("user", "Hi")]
    assert (good.chosen, good.rejected) == (BETTER, None)
    assert (bad.chosen, bad.rejected) == (None, BETTER)


KTO = {"messages": HI, "label": True}
# The rows before the last one tell the shape, the last one is bad.
BAD_PREFERENCES: dict[str, tuple[list[Row], str]] = {
    "nothing shared": (
        [{"chosen": "Yes.", "rejected": "No."}],
        "chosen: no column holds the prompt, and the answers share no beginning",
    ),
    "another prompt": (
        [{"prompt": "Bye", "chosen": HI, "rejected": REJECTED}],
        "chosen: this conversation does not hold the prompt of the row",
    ),
    "prompts that differ": (
        [{"chosen": HI, "rejected": [{"role": "user", "content": "Hey"}, HI[1]]}],
        "chosen: one answer after a shared prompt is expected, found turns of user, assistant",
    ),
    "several turns after the prompt": (
        [{"prompt": "Hi", "chosen": [HI[1], {"role": "tool", "content": "x"}], "rejected": "b"}],
        "chosen: one answer after a shared prompt is expected, found turns of assistant, tool",
    ),
    "an answer that is none of the assistant's": (
        [{"prompt": "Hi", "chosen": "a", "rejected": {"role": "system", "content": "b"}}],
        "rejected: one answer after a shared prompt is expected, found turns of system",
    ),
    "an empty answer": ([{"prompt": "Hi", "chosen": "", "rejected": "b"}], "chosen: empty"),
    "a transcript with an empty turn": (
        [{"chosen": "\n\nHuman: Hi\n\nAssistant:", "rejected": "\n\nHuman: Hi\n\nAssistant: a"}],
        "chosen: empty",
    ),
    "no verdict": (
        [KTO, {**KTO, "label": "maybe"}], "label: true or false expected, found 'maybe'",
    ),
    "no answer": (
        [KTO, {**KTO, "messages": HI[:1]}],
        "messages: an answer is expected last, found a turn of the user",
    ),
    "three outputs": (
        [PREFERENCES["two outputs"], {"instruction": "Hi", "output": ["a", "b", "c"]}],
        "output: two answers are expected, found a list of 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PREFERENCES)
def test_bad_preferences_name_their_field(name: str) -> None:
    rows, expected = BAD_PREFERENCES[name]
    assert problem(*rows) == f"rows.jsonl, line {len(rows)}: field {expected}"
