"""Tool calls, thinking, pieces with weights, what is trained, batches, documents, speed's twin."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from chat_models import (
    MULTI,
    OWN_TOKENIZER,
    SHARED,
    SINGLE,
    TRAINABLE,
    chat,
    each,
    ids_of_transformers,
    template_of,
    tokenizer_of,
    trained_ids,
    trained_runs,
)
from retone.batch import EncodedRow
from retone.chat_template import ChatTemplate, RowRejected
from retone.conversation import Conversation, Document, Message
from retone.data.checks import Ledger, encode_each
from retone.tokens import TextTokenizer, Tokens

ARGUMENTS = {"city": 'the "old" town', "days": 3, "alert": True, "units": ["°C", "mm"]}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of the next days.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Where."}},
            "required": ["city"],
        },
    },
}


def calling(arguments: Any, content: str = "") -> Message:
    call = {"type": "function", "function": {"name": "get_weather", "arguments": arguments}}
    return Message("assistant", content, tool_calls=(call,))


ASKED = Message("user", "Will it rain?")
WITH_CALL = [
    ASKED,
    calling(ARGUMENTS),
    Message("tool", '{"rain": "no"}', name="get_weather"),
    Message("assistant", "It will not."),
]
WRITES_CALLS = ["qwen2.5", "qwen3", "granite-4", "llama-3.1", "llama-3.2", "gpt-oss"]


def reason(template: ChatTemplate, messages: list[Message], **options: Any) -> str:
    with pytest.raises(RowRejected) as rejected:
        template.encode(messages, **options)
    assert rejected.value.detail
    return rejected.value.reason


# --- tool calls


@each(WRITES_CALLS)
def test_a_tool_call_is_trained_as_the_template_writes_it(name: str) -> None:
    template, tokenizer = template_of(name), tokenizer_of(name)
    row = template.encode(WITH_CALL[:2], tools=(WEATHER,))[0]
    dicts = [message.as_dict() for message in WITH_CALL[:2]]
    options = {"chat_template": template.text, "tools": [WEATHER], "tokenize": False}
    prompt = tokenizer.apply_chat_template(dicts[:1], add_generation_prompt=True, **options)
    text = tokenizer.apply_chat_template(dicts, **options)
    (run,) = trained_runs(row)
    assert tokenizer.decode(row.input_ids) == text
    assert tokenizer.decode(row.input_ids[: run.start]) == prompt
    written = tokenizer.decode(row.input_ids[run.start : run.stop - 1])
    assert text.startswith(prompt + written)
    assert "get_weather" in written
    assert json.dumps(ARGUMENTS, ensure_ascii=False) in written
    assert row.input_ids[run.stop - 1] in template.stop_ids
    raw = template.parse(row.input_ids[run.start : run.stop])
    assert written.endswith(raw)
    assert json.dumps(ARGUMENTS, ensure_ascii=False) in raw
    assert "get_weather" in raw


@each(WRITES_CALLS)
def test_a_conversation_with_a_tool_trains_the_call_and_the_answer(name: str) -> None:
    template, tokenizer = template_of(name), tokenizer_of(name)
    assert template.no_calls == ""
    rows = template.encode(WITH_CALL, tools=(WEATHER,))
    spans = [(row, run) for row in rows for run in trained_runs(row)]
    assert len(spans) == 2
    row, run = spans[1]
    assert template.parse(row.input_ids[run.start : run.stop]) == "It will not."
    encoding = tokenizer.apply_chat_template(
        [message.as_dict() for message in WITH_CALL],
        chat_template=template.text,
        tools=[WEATHER],
    )
    assert list(row.input_ids) == encoding["input_ids"]


def test_gpt_oss_ends_a_call_with_a_token_of_its_own() -> None:
    template, tokenizer = template_of("gpt-oss"), tokenizer_of("gpt-oss")
    (row,) = template.encode(WITH_CALL[:2], tools=(WEATHER,))
    call = tokenizer.convert_tokens_to_ids("<|call|>")
    assert trained_ids(row)[-1] == call
    assert template.stop_ids == {template.stop_id, call}
    assert template.parse(trained_ids(row)).startswith(" to=functions.get_weather")


def test_the_prompt_with_tools_is_that_of_transformers() -> None:
    template, tokenizer = template_of("qwen2.5"), tokenizer_of("qwen2.5")
    encoding = tokenizer.apply_chat_template(
        [ASKED.as_dict()], chat_template=template.text, tools=[WEATHER], add_generation_prompt=True
    )
    assert list(template.prompt_ids([ASKED], tools=(WEATHER,))) == encoding["input_ids"]


@pytest.mark.parametrize("name", ["tinyllama", "phi-3", "smollm2", "gemma-2"])
def test_a_template_that_writes_no_calls_rejects_them(name: str) -> None:
    template = template_of(name)
    assert template.no_calls
    assert reason(template, WITH_CALL[:2]) == "tool-call-not-rendered"
    assert reason(template, SINGLE, tools=(WEATHER,)) == "tools-not-rendered"


def test_an_answer_of_a_tool_that_the_template_leaves_out_is_rejected() -> None:
    messages = [ASKED, Message("tool", "No rain."), Message("assistant", "It will not.")]
    assert reason(template_of("phi-3"), messages) == "tools-not-rendered"


def test_content_beside_a_call_must_be_written_too() -> None:
    messages = [ASKED, calling(ARGUMENTS, "Let me look.")]
    (row,) = template_of("qwen2.5").encode(messages, tools=(WEATHER,))
    assert "Let me look." in template_of("qwen2.5").parse(trained_ids(row))
    found = reason(template_of("llama-3.1"), messages, tools=(WEATHER,))
    assert found == "content-changed"


def test_a_call_whose_arguments_are_not_written_is_rejected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forgetful = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.thing or "
        "'...' }}){% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    monkeypatch.setattr(tokenizer_of("qwen3"), "chat_template", forgetful)
    template = ChatTemplate(tokenizer_of("qwen3"))
    assert template.no_calls == ""
    assert reason(template, WITH_CALL[:2]) == "tool-call-not-rendered"


def glaive() -> list[Conversation]:
    """Public conversations with tools, of which some are called."""
    file = SHARED / "instruct" / "glaive_toolcall_en_demo.json"
    if not file.exists():
        pytest.skip(f"no {file}")
    found = []
    for number, row in enumerate(json.loads(file.read_text()), start=1):
        messages = []
        for turn in row["conversations"]:
            role, text = turn["from"], turn["value"]
            if role == "function_call":
                call = {"type": "function", "function": json.loads(text)}
                messages.append(Message("assistant", "", tool_calls=(call,)))
            else:
                roles = {"human": "user", "gpt": "assistant", "observation": "tool"}
                messages.append(Message(roles[role], text))  # type: ignore[arg-type]
        tools = tuple({"type": "function", "function": tool} for tool in json.loads(row["tools"]))
        found.append(Conversation(tuple(messages), file.name, number, tools=tools))
    return found


@each(["qwen2.5", "qwen3", "granite-4"])
def test_real_conversations_with_tools_hold(name: str) -> None:
    conversations = glaive()
    template = template_of(name)
    called = 0
    for conversation, rows in zip(conversations, template.encode_batch(conversations), strict=True):
        assert not isinstance(rows, RowRejected), f"{conversation.where}: {rows}"
        turns = [message for message in conversation.messages if message.weight]
        runs = [(row, run) for row in rows for run in trained_runs(row)]
        for message, (row, run) in zip(turns, runs, strict=True):
            read = template.parse(row.input_ids[run.start : run.stop])
            if message.tool_calls:
                called += 1
                inner = read.strip().removeprefix("<tool_call>").removesuffix("</tool_call>")
                assert json.loads(inner) == message.tool_calls[0]["function"]
            else:
                assert read == message.content
    assert called > 100


# --- thinking

THOUGHTFUL = [
    MULTI[0],
    dataclasses.replace(MULTI[1], thinking="Be kind."),
    MULTI[2],
    dataclasses.replace(MULTI[3], thinking="Ask back,\nof course."),
]


@pytest.mark.parametrize("name", ["qwen3", "gpt-oss"])
def test_thinking_is_trained_as_rendered_turn_by_turn(name: str) -> None:
    template, tokenizer = template_of(name), tokenizer_of(name)
    assert template.thinking
    rows = template.encode(THOUGHTFUL)
    assert len(rows) == 2
    for row, turn in zip(rows, (1, 3), strict=True):
        shown = THOUGHTFUL[: turn + 1]
        assert row.input_ids == ids_of_transformers(tokenizer, template, shown)
        assert THOUGHTFUL[turn].thinking in tokenizer.decode(trained_ids(row))
        assert template.parse(trained_ids(row)) == THOUGHTFUL[turn].content


def test_thinking_is_read_past_where_only_some_answers_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sometimes = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    monkeypatch.setattr(tokenizer_of("qwen3"), "chat_template", sometimes)
    template = ChatTemplate(tokenizer_of("qwen3"))
    (row,) = template.encode([*THOUGHTFUL, *MULTI[4:]])
    read = [template.parse([row.input_ids[at] for at in run]) for run in trained_runs(row)]
    assert read == [message.content for message in MULTI[1::2]]


@pytest.mark.parametrize("name", ["smollm2", "llama-3.1", "tinyllama", "phi-3", "gemma-2"])
def test_thinking_without_a_place_is_rejected(name: str) -> None:
    assert not template_of(name).thinking
    assert reason(template_of(name), THOUGHTFUL[:2]) == "thinking-not-rendered"


# --- pieces of a turn with a weight each


def pieces(*spans: tuple[str, float], weight: float | None = None) -> list[Message]:
    content = "".join(text for text, _ in spans)
    return [MULTI[0], Message("assistant", content, loss_weight=weight, spans=spans)]


@each(OWN_TOKENIZER)
def test_each_piece_has_its_weight(name: str) -> None:
    spans = (("Under the mat,", 1.0), (" as they say, ", 0.0), ("it is.", 0.5))
    tokenizer, template = tokenizer_of(name), template_of(name)
    (row,) = template.encode(pieces(*spans))
    plain = template.encode(pieces(("Under the mat, as they say, it is.", 1.0)))[0]
    assert row.input_ids == plain.input_ids
    first = next(at for at, weight in enumerate(plain.loss_weights) if weight)
    by_weight = {
        weight: tokenizer.decode(
            [
                token
                for token, found in list(zip(row.input_ids, row.loss_weights, strict=True))[first:]
                if found == weight
            ]
        )
        for weight in (0.0, 0.5)
    }
    assert "as they say" in by_weight[0.0]
    assert "Under" not in by_weight[0.0] + by_weight[0.5]
    assert "is." in by_weight[0.5]
    stop = row.input_ids.index(template.stop_id, first)
    assert row.loss_weights[stop] == 1.0


def test_a_token_on_the_seam_goes_with_its_first_character() -> None:
    template = template_of("llama-3.1")  # " understand" is one token
    (whole,) = template.encode(pieces(("I", 0.0), (" understand", 1.0)))
    for cut in (1, 6):
        word = " understand"
        (row,) = template.encode(pieces(("I", 0.0), (word[:cut], 1.0), (word[cut:], 0.5)))
        assert row == whole


def test_a_turn_of_weight_0_may_have_pieces_that_count() -> None:
    (row,) = template_of("smollm2").encode(pieces(("No. ", 0.0), ("Yes!", 2.0), weight=0.0))
    assert {weight for weight in row.loss_weights if weight} == {2.0}


def test_stripping_cuts_the_pieces_as_well() -> None:
    template = template_of("llama-3.1")
    spans = (("  ", 2.0), (" One", 1.0), (" two  ", 0.5), (" ", 3.0))
    stripped = template.encode(pieces(*spans))
    assert stripped == template.encode(pieces(("One", 1.0), (" two", 0.5)))


def test_pieces_that_are_not_the_content_are_rejected() -> None:
    messages = [MULTI[0], Message("assistant", "Yes.", spans=(("No.", 1.0),))]
    assert reason(template_of("smollm2"), messages) == "spans-differ"


def test_a_weighted_piece_of_a_question_is_rejected() -> None:
    messages = [Message("user", "Hi", spans=(("Hi", 1.0),)), MULTI[1]]
    assert reason(template_of("smollm2"), messages) == "weight-on-other-role"


# --- what is trained


@each(TRAINABLE)
def test_only_the_last_answer(name: str) -> None:
    template = template_of(name)
    (row,) = template.encode(MULTI, train_on="last")
    assert row.input_ids == ids_of_transformers(tokenizer_of(name), template, MULTI)
    assert template.parse(trained_ids(row)) == MULTI[-1].content


def test_a_last_answer_of_weight_0_trains_nothing() -> None:
    messages = [*MULTI[:3], dataclasses.replace(MULTI[3], loss_weight=0.0)]
    assert len(template_of("smollm2").encode(messages)) == 1
    assert reason(template_of("smollm2"), messages, train_on="last") == "nothing-trained"


@each(TRAINABLE)
def test_every_token_of_the_rendering(name: str) -> None:
    template = template_of(name)
    (row,) = template.encode(MULTI, train_on="everything")
    assert row.input_ids == ids_of_transformers(tokenizer_of(name), template, MULTI)
    assert row.loss_weights == (0.0, *[1.0] * (len(row.input_ids) - 1))


# --- many at once


def test_a_batch_gives_what_one_conversation_gives() -> None:
    mixed = [
        Conversation(tuple(MULTI), "chats.jsonl", 1),
        Conversation(tuple(chat("Hi")), "chats.jsonl", 2),
        Conversation(tuple(chat("Hi", "half a pair: \ud83d")), "chats.jsonl", 3),
        Conversation((), "chats.jsonl", 4),
        Conversation(tuple(WITH_CALL), "chats.jsonl", 5, tools=(WEATHER,)),
        Conversation(tuple(chat("Hi", "An <|im_end|> within")), "chats.jsonl", 6),
        Conversation(tuple(SINGLE), "chats.jsonl", 7),
    ]
    rejected = {2: "no-assistant-turn", 3: "not-unicode", 4: "no-assistant-turn"}
    rejected[6] = "stop-token-in-answer"
    for name in ("qwen2.5", "qwen3"):
        template = template_of(name)
        for conversation, found in zip(mixed, template.encode_batch(mixed), strict=True):
            messages = list(conversation.messages)
            options = {"tools": conversation.tools, "row": conversation.row}
            if isinstance(found, RowRejected):
                assert rejected[conversation.row] == found.reason
                assert reason(template, messages, **options) == found.reason
            else:
                assert conversation.row not in rejected
                assert template.encode(messages, source="chats.jsonl", **options) == found
        assert template.encode_batch([]) == []


def test_a_tokenizer_that_cuts_and_pads_does_neither_here() -> None:
    tokenizer = hostile()
    texts = TextTokenizer(tokenizer)
    plain = [tokens.ids for tokens in map(texts.tokenize, ("ab bc", "ab"))]
    tokenizer.backend_tokenizer.enable_truncation(1)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    try:
        found = texts.tokenize_all(["ab bc", "ab"])
    finally:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    assert [tokens.ids for tokens in found if isinstance(tokens, Tokens)] == plain


def encoded_rows(*given: Any) -> list[EncodedRow]:
    """The rows of all samples in one list."""
    return [row for rows in encode_each(*given) for row in rows]


def test_without_a_limit_a_document_is_one_row_even_where_a_character_is_several_tokens() -> None:
    text = "\N{CUNEIFORM SIGN A}" * 30
    for name in ("smollm2", "tinyllama"):
        ledger = Ledger("d.txt")
        (row,) = encoded_rows([Document(text, "d.txt", 1)], template_of(name), ledger)
        assert ledger.used == 1
        assert len(row.input_ids) >= 2 * len(text)


def test_the_ledger_counts_what_was_stripped_and_dropped() -> None:
    conversations = [
        Conversation(tuple(chat("Hi", " Hello. ")), "chats.jsonl", 1),
        Conversation(tuple(chat("Hi", "Hello.")), "chats.jsonl", 2),
        Conversation(tuple(chat("Hi")), "chats.jsonl", 3),
    ]
    ledger = Ledger("chats.jsonl")
    rows = encoded_rows(conversations, template_of("llama-3.1"), ledger)
    assert rows[0].input_ids == rows[1].input_ids
    assert (ledger.read, ledger.used, ledger.stripped) == (3, 2, 1)
    assert ledger.as_json()["stripped"] == 1
    assert dict(ledger.dropped) == {"no-assistant-turn": 1}


def test_the_ledger_cuts_old_turns_and_passes_on_what_is_trained() -> None:
    template = template_of("llama-3.1")
    (whole,), (short,) = template.encode(MULTI), template.encode(MULTI[2:], train_on="last")
    ledger = Ledger("chats.jsonl")
    limit = len(short.input_ids)
    (row,) = encoded_rows([Conversation(tuple(MULTI))], template, ledger, limit, "last")
    assert row == short
    assert (ledger.cut_turns, ledger.cut_tokens) == (2, len(whole.input_ids) - limit)
    assert encoded_rows([Conversation(tuple(SINGLE))], template, ledger, 5) == []
    assert dict(ledger.dropped) == {"longer-than-max-length": 1}


# --- the quick way to find where a prompt ends, and its plain twin

LETTERS = [" ", "\n", "\t", "a", "Ä", "中", "🦜", "e\u0301", "\u2581", ".", "<", "|", "<|", "|>"]
MARKS = ["<s>", "</s>", "<|end|>", "<|user|>", "<|assistant|>", "<|im_start|>", "<|im_end|>"]
WORDS = ["<think>", "</think>", "<|eot_id|>", "<|endoftext|>", "assistant", "user", "[/INST]"]
ODD = st.sampled_from([*LETTERS, *MARKS, *WORDS])
CONTENT = st.lists(ODD, max_size=8).map("".join) | st.text(max_size=12)


def plain_prompt_length(tokenizer: Any, text: str, end: int) -> int | None:
    """The number of the prompt's own tokens if they begin the row's tokens, else None."""
    row = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    before = tokenizer(text[:end], add_special_tokens=False)["input_ids"]
    first = len(before)
    same = row["input_ids"][:first] == before and row["offset_mapping"][first - 1][1] <= end
    return first if same else None


def quick_prompt_length(texts: TextTokenizer, row: Tokens, end: int) -> int | None:
    try:
        return texts.prompt_length(row, end)
    except RowRejected:
        return None


@pytest.mark.parametrize("name", [*OWN_TOKENIZER, "tiny"])
@settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(contents=st.lists(CONTENT, min_size=2, max_size=6), cut=st.integers(0, 400))
def test_the_end_of_a_prompt_is_where_its_own_tokens_end(
    name: str, contents: list[str], cut: int
) -> None:
    tokenizer, template = tokenizer_of(name), template_of(name)
    messages = chat(*contents)
    text = template.render(messages, add_generation_prompt=False)
    texts = TextTokenizer(tokenizer)
    row = texts.tokenize(text)
    # Where prompts end, and anywhere else: inside of words, marks and special tokens.
    ends = {min(1 + cut, len(text))}
    for at in range(1, len(messages), 2):
        prompt = template.render(messages[:at], add_generation_prompt=True)
        if text.startswith(prompt):
            ends.add(len(prompt))
    for end in ends:
        assert quick_prompt_length(texts, row, end) == plain_prompt_length(tokenizer, text, end)


@functools.cache
def hostile() -> Any:
    """A tokenizer whose added tokens cut texts in every way there is.

    Its normalizer turns a full-width "</s>" into the plain one, which the model itself knows; and
    its model prefers long pieces, so that a token depends on much of what stands before it.
    """
    pieces = ["</s>", *"abc<>/s|!. ", "ab", "bc", "abc", "cab", " a", "s>", "a!", "!a", "b|"]
    scores = [(piece, -1.0 - 1 / len(piece)) for piece in dict.fromkeys(pieces)]
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), *scores], unk_id=0))
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens([AddedToken("</s>", normalized=False)])
    backend.add_tokens(
        [
            AddedToken("abc!", normalized=True),
            AddedToken("ca", single_word=True, normalized=False),
            AddedToken("<|", lstrip=True, normalized=False),
            AddedToken("|>", rstrip=True, normalized=False),
            AddedToken("<|!|>", normalized=False),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


WIDE = "\uff1c/s\uff1e"  # the normalizer makes "</s>" of it
CUTTING = ["</s>", WIDE, WIDE[0], "abc!", "\uff41bc!", "ca", " ca", "<|", "|>", "<|!|>", "!"]


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(parts=st.lists(st.sampled_from([*CUTTING, *"abc <>/s|."]), min_size=1, max_size=8))
def test_the_quick_way_agrees_on_tokenizers_of_any_kind(parts: list[str]) -> None:
    text = "".join(parts)
    texts = TextTokenizer(hostile())
    row = texts.tokenize(text)
    for end in range(1, len(text) + 1):
        assert quick_prompt_length(texts, row, end) == plain_prompt_length(hostile(), text, end)


class Recording:
    """A tokenizer, its own core, that remembers the texts that it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.backend_tokenizer = self

    def __getattr__(self, name: str) -> Any:
        of_core = hasattr(hostile().backend_tokenizer, name)
        return getattr(hostile().backend_tokenizer if of_core else hostile(), name)

    def encode_batch(self, texts: list[str], **options: Any) -> Any:
        self.asked += texts
        return hostile().backend_tokenizer.encode_batch(texts, **options)


@pytest.mark.parametrize(
    ("prompt", "ending"),
    [
        ("ab</s>bc", "</s>bc"),
        ("ab</s>b<|c", "<|c"),
        (f"ab{WIDE}bc", f"ab{WIDE}bc"),  # the model's token, not one that was cut out
        ("ab abc! b", "ab abc! b"),  # looked for after the text was normalised
        ("ab ca b", "ab ca b"),  # looked for among whole words
        ("ab bc", "ab bc"),
    ],
)
def test_only_the_end_of_a_prompt_is_tokenised_where_that_is_enough(
    prompt: str, ending: str
) -> None:
    recording = Recording()
    texts = TextTokenizer(recording)
    row = texts.tokenize(f"{prompt}.")
    assert texts.prompt_length(row, len(prompt)) == len(texts.tokenize(prompt).ids)
    assert recording.asked[1] == ending


@each(TRAINABLE)
def test_rendering_is_that_of_transformers(name: str) -> None:
    template, tokenizer = template_of(name), tokenizer_of(name)
    for messages in (SINGLE, MULTI, THOUGHTFUL):
        for end in range(1, len(messages) + 1):
            prompt = messages[end - 1].role == "user"
            expected = tokenizer.apply_chat_template(
                [message.as_dict() for message in messages[:end]],
                chat_template=template.text,
                add_generation_prompt=prompt,
                tokenize=False,
            )
            assert template.render(messages[:end], add_generation_prompt=prompt) == expected


# --- documents


@pytest.mark.parametrize("name", [*OWN_TOKENIZER, "tiny"])
def test_a_document_is_cut_into_rows_that_train_every_token_but_the_first(name: str) -> None:
    text = "It was the best of times, it was the worst of times.\n" * 7
    ids = tokenizer_of(name)(text)["input_ids"]
    for longest in (2, 5, 16, len(ids) - 1, len(ids), 10_000):
        rows = template_of(name).encode_document(text, longest, source="tale.txt", row=3)
        assert all(2 <= len(row.input_ids) <= longest for row in rows)
        assert {len(row.input_ids) for row in rows[:-1]} <= {longest}
        assert all(row.loss_weights == (0, *[1] * (len(row.input_ids) - 1)) for row in rows)
        trained = [token for row in rows for token in row.input_ids[1:]]
        assert [rows[0].input_ids[0], *trained] == ids
        assert {(row.source, row.row) for row in rows} == {("tale.txt", 3)}


def test_a_document_begins_as_the_tokenizer_begins_texts() -> None:
    tokenizer = tokenizer_of("llama-3.1")
    (row,) = template_of("llama-3.1").encode_document("Once upon a time", 100)
    assert row.input_ids[0] == tokenizer.bos_token_id
    assert row.input_ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(
    ("text", "longest", "reason"),
    [
        ("", 10, "nothing-trained"),
        ("Once upon a time", 1, "nothing-trained"),
        ("\ud83d", 9, "not-unicode"),
    ],
)
def test_a_document_that_trains_nothing_is_rejected(text: str, longest: int, reason: str) -> None:
    with pytest.raises(RowRejected, match=reason):
        template_of("llama-3.1").encode_document(text, longest)
