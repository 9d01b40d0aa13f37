"""Whatever stands in a row, it becomes samples or a counted problem: never a traceback."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retone.conversation import Conversation, Document, Message, Preference
from retone.data.formats import FORMATS, Sample
from retone.data.instructions import PAIR_COLUMNS
from retone.data.turns import CHAT_COLUMNS, CONTENT_KEYS, ROLE_KEYS, ROLE_OF
from retone.errors import InputError
from row_reading import read

TURN_KEYS = (
    *ROLE_KEYS, *CONTENT_KEYS, "tool_calls", "function_call", "tool_call_id", "name", "arguments",
    "function", "type", "weight", "train", "thinking", "human", "assistant", "input", "output",
)  # fmt: skip
COLUMNS = (
    *CHAT_COLUMNS, *(column for pair in PAIR_COLUMNS for column in pair), "instances", "history",
    "system", "tools", "chosen", "rejected", "label", "answer_keywords", "context", "turns",
    "rejected_response", "images", "input_ids",
)  # fmt: skip
TEXTS = st.sampled_from(
    [*ROLE_OF, "Hi", "", " ", "{{name}}", "[]", "{}", '[{"role": "user"}]', "é"]
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | TEXTS
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(TURN_KEYS), inner, max_size=4)
        | inner.map(lambda value: json.dumps(value))
    ),
    max_leaves=12,
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(list(ROLE_OF)), "content": TEXTS | VALUES},
        optional=dict.fromkeys(("tool_calls", "weight", "thinking", "tool_call_id"), VALUES),
    )
    | VALUES,
    max_size=4,
)
ROW = st.dictionaries(st.sampled_from(COLUMNS), VALUES | TURNS, min_size=1, max_size=5)
KNOWN = st.sampled_from([json.loads(form.example) for form in FORMATS.values()])
ROWS = st.lists(
    ROW | KNOWN | st.builds(lambda known, row: {**known, **row}, KNOWN, ROW), min_size=1, max_size=3
)


def messages_of(sample: Sample) -> list[Message]:
    if isinstance(sample, Conversation):
        return list(sample.messages)
    if isinstance(sample, Preference):
        return [*sample.prompt, *filter(None, (sample.chosen, sample.rejected))]
    assert isinstance(sample, Document)
    assert sample.text.strip()
    return []


@settings(
    max_examples=200,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(ROWS, st.sampled_from(["auto", *FORMATS]))
def test_any_row_is_a_sample_or_a_problem(rows: list[dict[str, Any]], form: str) -> None:
    try:
        found = read(*rows, form=form, values={"name": "Ada"})
    except InputError:
        return
    rows_used = {sample.row for sample in found.samples}
    assert len(rows_used) + found.bad.count == len(rows)
    for sample in found.samples:
        for message in messages_of(sample):
            said = message.content.strip() or message.tool_calls or message.role == "tool"
            assert said, message
            assert not message.spans or "".join(text for text, _ in message.spans) == (
                message.content
            )
