"""Rows in the spellings of many tools become samples, or are refused with their field and why."""

from __future__ import annotations

import json

import pytest

from retone.conversation import Conversation, Document
from retone.data.documents import CHUNK_CHARACTERS, chunks
from retone.data.formats import FORMATS
from retone.data.instructions import PAIR_COLUMNS
from retone.data.look_alikes import RENDERED
from row_reading import BE_KIND, HI, Row, one, problem, read, refused, said

EXCHANGE = [("user", "Hi"), ("assistant", "Good day!")]
LONGER = [*EXCHANGE, ("user", "And now?"), ("assistant", "Goodbye.")]

# What a tool's documents show, with small texts: (row, shape, turns).
CONVERSATIONS: dict[str, tuple[Row, str, list[tuple[str, str]]]] = {
    "TRL prompt-completion": ({"prompt": "Hi", "completion": "Good day!"}, "pair", EXCHANGE),
    "TRL conversational prompt-completion": (
        {"prompt": HI[:1], "completion": HI[1:]}, "pair", EXCHANGE,
    ),
    "one turn as completion": ({"prompt": HI[:1], "completion": HI[1]}, "pair", EXCHANGE),
    "inspect input and target": ({"input": HI[:1], "target": "Good day!"}, "pair", EXCHANGE),
    "OpenAI chat": ({"messages": [{"role": "developer", "content": "Be kind."}, *HI]}, "messages",
                    [BE_KIND, *EXCHANGE]),
    "OpenAI content parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, HI[1]]},
        "messages", EXCHANGE,
    ),
    "UltraChat 200k": ({"prompt": "Hi", "prompt_id": "a1", "messages": HI}, "messages", EXCHANGE),
    "no_robots": (
        {"prompt": "Hi", "prompt_id": "b", "messages": HI, "category": "Chat"},
        "messages", EXCHANGE,
    ),
    "messages as JSON text in a CSV": ({"messages": json.dumps(HI)}, "messages", EXCHANGE),
    "torchtune chat": ({"dialogue": HI}, "messages", EXCHANGE),
    "OpenAssistant": (
        {"messages": [{"role": "prompter", "text": "Hi"},
                      {"role": "assistant", "text": "Good day!"}]},
        "messages", EXCHANGE,
    ),
    "ShareGPT": (
        {"id": "x", "conversations": [{"from": "human", "value": "Hi"},
                                      {"from": "gpt", "value": "Good day!"}]},
        "sharegpt", EXCHANGE,
    ),
    "SlimOrca": (
        {"conversations": [{"from": "system", "value": "Be kind.", "weight": None},
                           {"from": "human", "value": "Hi", "weight": 0.0},
                           {"from": "gpt", "value": "Good day!", "weight": 1.0}]},
        "sharegpt", [BE_KIND, *EXCHANGE],
    ),
    "LlamaFactory system column": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Good day!"}],
         "system": "Be kind.", "tools": ""},
        "sharegpt", [BE_KIND, *EXCHANGE],
    ),
    "Capybara": (
        {"source": "Airoboros", "conversation": [{"input": "Hi", "output": "Good day!"},
                                                 {"input": "And now?", "output": "Goodbye."}]},
        "sharegpt", LONGER,
    ),
    "ms-swift exchanges": (
        {"system": "Be kind.", "conversation": [{"human": "Hi", "assistant": "Good day!"}]},
        "sharegpt", [BE_KIND, *EXCHANGE],
    ),
    "LIMA": (
        {"conversations": ["Hi", "Good day!", "And now?", "Goodbye."], "source": "lima"},
        "sharegpt", LONGER,
    ),
    "UltraChat": ({"id": "0", "data": ["Hi", "Good day!"]}, "sharegpt", EXCHANGE),
    "a greeting first": (
        {"conversations": [{"from": "gpt", "value": "Welcome."}, {"from": "human", "value": "Hi"},
                           {"from": "gpt", "value": "Good day!"}]},
        "sharegpt", [("assistant", "Welcome."), *EXCHANGE],
    ),
    "Alpaca": (
        {"instruction": "Greet.", "input": "Ada", "output": "Hi, Ada!"},
        "alpaca", [("user", "Greet.\n\nAda"), ("assistant", "Hi, Ada!")],
    ),
    "Alpaca without an input": (
        {"instruction": "Hi", "input": "", "output": "Good day!"}, "alpaca", EXCHANGE,
    ),
    "Alpaca with <noinput>": (
        {"instruction": "Hi", "input": "<noinput>", "output": "Good day!"}, "alpaca", EXCHANGE,
    ),
    "Alpaca with null": (
        {"instruction": "Hi", "input": None, "output": "Good day!"}, "alpaca", EXCHANGE,
    ),
    "LlamaFactory Alpaca": (
        {"instruction": "And now?", "input": "", "output": "Goodbye.", "system": "Be kind.",
         "history": [["Hi", "Good day!"]]},
        "alpaca", [BE_KIND, *LONGER],
    ),
    "a CSV without history": (
        {"query": "Hi", "response": "Good day!", "history": "[]"}, "pair", EXCHANGE,
    ),
    "WizardLM": ({"instruction": "Hi", "output": "Good day!"}, "alpaca", EXCHANGE),
    "Dolly": (
        {"instruction": "Who flies?", "context": "Birds fly.", "response": "Birds.",
         "category": "closed_qa"},
        "alpaca", [("user", "Who flies?\n\nBirds fly."), ("assistant", "Birds.")],
    ),
    "unsloth rows with a text beside them": (
        {"instruction": "Hi", "input": "", "output": "Good day!",
         "text": "### Instruction:\nHi\n\n### Response:\nGood day!"},
        "alpaca", EXCHANGE,
    ),
    "torchtune instruct": ({"input": "Hi", "output": "Good day!"}, "pair", EXCHANGE),
    "instruction and response": ({"instruction": "Hi", "response": "Good day!"}, "pair", EXCHANGE),
    "OpenOrca": (
        {"id": "1", "system_prompt": "Be kind.", "question": "Hi", "response": "Good day!"},
        "pair", [BE_KIND, *EXCHANGE],
    ),
    "ms-swift query and history": (
        {"query": "And now?", "response": "Goodbye.", "history": [["Hi", "Good day!"]]},
        "pair", LONGER,
    ),
    "GSM8K": (
        {"question": "2 + 2?", "answer": "2 + 2 = <<2+2=4>>4\n#### 4"},
        "qa", [("user", "2 + 2?"), ("assistant", "2 + 2 = <<2+2=4>>4\n#### 4")],
    ),
    "SQuAD": (
        {"id": "5", "title": "Oslo", "context": "Oslo is in Norway.", "question": "Where is Oslo?",
         "answers": {"text": ["Norway", "in Norway"], "answer_start": [11, 8]}},
        "qa", [("user", "Oslo is in Norway.\n\nWhere is Oslo?"), ("assistant", "Norway")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_of_many_tools(name: str) -> None:
    row, shape, turns = CONVERSATIONS[name]
    found = read(row)
    assert found.bad.texts == []
    (sample,) = found.samples
    assert isinstance(sample, Conversation)
    assert (found.shape.name, said(sample.messages)) == (shape, turns)


@pytest.mark.parametrize("pair", PAIR_COLUMNS, ids=" and ".join)
def test_every_pair_of_columns(pair: tuple[str, str]) -> None:
    row = {"id": 7, pair[1]: "Good day!", pair[0]: "Hi"}
    assert said(one(row).messages) == EXCHANGE
    assert read(row, form="pair").shape.evidence == f"columns {pair[0]} and {pair[1]}"


@pytest.mark.parametrize("name", FORMATS)
def test_examples_of_the_table_have_their_shape(name: str) -> None:
    row = json.loads(FORMATS[name].example)
    assert read(row).shape.name == name
    assert read(row, form=name).samples


def test_what_is_not_read_stays_with_the_sample() -> None:
    found = one({"id": 7, "prompt": "Hi", "completion": "Good day!", "topic": {"a": [1]}})
    assert found.extra == {"id": 7, "topic": {"a": [1]}}
    assert (found.source, found.row) == ("rows.jsonl", 1)


def test_columns_that_are_null_throughout_tell_nothing() -> None:
    nulls = {"chosen": None, "rejected": None, "conversations": None, "label": None}
    turn = {"from": None, "value": None, "tool_calls": None, "weight": None, "name": None}
    found = read({**nulls, "messages": [{**turn, **message} for message in HI]})
    assert found.shape.name == "messages"
    assert said(found.samples[0].messages) == EXCHANGE  # type: ignore[union-attr]


def test_columns_of_the_recipe() -> None:
    row = {"plain": "Hi", "yoda": "Good day!", "messages": HI, "prompt": "no", "topic": "t"}
    found = read(row, columns={"prompt": "plain", "completion": "yoda"})
    (sample,) = found.samples
    assert isinstance(sample, Conversation)
    assert said(sample.messages) == EXCHANGE
    assert sample.extra == {"messages": HI, "prompt": "no", "topic": "t"}
    assert found.shape.evidence.endswith("prompt = plain, completion = yoda")
    assert found.shape.columns[:2] == ("plain", "yoda")


def test_columns_may_be_swapped_and_left_out() -> None:
    row = {"prompt": "Good day!", "completion": "Hi"}
    swapped = {"prompt": "completion", "completion": "prompt"}
    assert said(one(row, columns=swapped).messages) == EXCHANGE
    row = {"prompt": "Hi", "reply": "Good day!"}
    assert said(one(row, columns={"completion": "reply"}).messages) == EXCHANGE


@pytest.mark.parametrize(
    ("columns", "row", "shape"),
    [
        ({"messages": "talk"}, {"talk": HI}, "messages"),
        ({"messages": "talk"}, {"talk": [{"from": "human", "value": "Hi"}]}, "sharegpt"),
        ({"conversations": "talk"}, {"talk": [{"human": "Hi", "assistant": "Yo"}]}, "sharegpt"),
        ({"text": "body"}, {"body": "Once.", "title": "A tale"}, "text"),
        ({"question": "q", "answer_keywords": "k"}, {"q": "Who?", "k": ["me"]}, "qa"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, {"p": "Hi", "a": "x", "b": "y"},
         "preference"),
        ({"messages": "talk", "label": "ok"}, {"talk": HI, "ok": True}, "preference"),
        ({"instruction": "DO", "output": "SAY"}, {"DO": "Hi", "SAY": "Yo"}, "alpaca"),
        ({"prompt": "a", "completion": "b", "system": "c"}, {"a": "x", "b": "y", "c": "z"}, "pair"),
    ],
)  # fmt: skip
def test_columns_of_other_shapes(columns: Row, row: Row, shape: str) -> None:
    assert read(row, columns=columns).shape.name == shape


def test_problems_name_the_columns_of_the_file() -> None:
    mapping = {"messages": "talk"}
    text = problem({"talk": HI}, {"talk": [{"role": "user", "content": 5}]}, columns=mapping)
    assert text == "rows.jsonl, line 2: field talk[0].content: text or a list of parts is " \
                   "expected, found 5"  # fmt: skip


def test_a_named_shape_wins() -> None:
    row = {"instruction": "Hi", "output": "Good day!", "chosen": "a", "rejected": "b"}
    assert read(row).shape.name == "preference"
    found = read(row, form="alpaca")
    assert said(found.samples[0].messages) == EXCHANGE  # type: ignore[union-attr]
    assert found.samples[0].extra == {"chosen": "a", "rejected": "b"}


def test_most_of_the_first_rows_tell() -> None:
    found = read({"prompt": None}, *[{"prompt": "Hi", "completion": "Yo"}] * 3)
    assert found.shape.name == "pair"
    assert found.bad.texts == ["rows.jsonl, line 1: field prompt: text is expected, found nothing"]
    assert len(found.samples) == 3


def test_a_row_of_another_shape_is_counted() -> None:
    rows = [{"prompt": "Hi", "completion": "Yo"}, {"instruction": "Hi", "output": "Yo"}]
    text = problem(*rows)
    assert text == "rows.jsonl, line 2: field prompt: text is expected, found nothing"


# Questions and answers


def test_keywords_are_the_answer_and_are_kept() -> None:
    found = one({"question": "When?", "answer_keywords": ["1931", "spring"], "topic": "firm"})
    assert said(found.messages) == [("user", "When?"), ("assistant", "1931, spring")]
    assert found.extra == {"answer_keywords": ["1931", "spring"], "topic": "firm"}


@pytest.mark.parametrize(
    ("text", "keywords"),
    [
        ("Norway", ["Norway"]),
        ("Norway, Oslo", ["Norway", "Oslo"]),
        ("1,200; north ;", ["1,200", "north"]),
        ('["a, b", "c"]', ["a, b", "c"]),
    ],
)
def test_keywords_in_one_text(text: str, keywords: list[str]) -> None:
    found = one({"question": "Where?", "answer_keywords": text})
    assert found.extra == {"answer_keywords": keywords}
    assert found.answer == ", ".join(keywords)


def test_an_answer_beside_keywords_is_trained() -> None:
    found = one({"question": "When?", "answer": "In 1931.", "answer_keywords": "1931"})
    assert (found.answer, found.extra) == ("In 1931.", {"answer_keywords": ["1931"]})


def test_the_first_of_several_answers_is_trained() -> None:
    found = one({"question": "Who?", "answer": ["Bobby Scott", "Bob Russell"]})
    assert found.answer == "Bobby Scott"
    assert found.extra == {"answers": ["Bobby Scott", "Bob Russell"]}


def test_seed_tasks_give_a_conversation_per_instance() -> None:
    instances = [{"input": "Ada", "output": "Hi, Ada!"}, {"input": "", "output": "Hi!"}]
    found = read({"id": "s1", "instruction": "Greet.", "instances": instances})
    turns = [said(sample.messages) for sample in found.samples]  # type: ignore[union-attr]
    assert turns == [
        [("user", "Greet.\n\nAda"), ("assistant", "Hi, Ada!")],
        [("user", "Greet."), ("assistant", "Hi!")],
    ]
    assert all(sample.row == 1 and sample.extra == {"id": "s1"} for sample in found.samples)


def test_prompts_have_no_answer() -> None:
    found = one({"question_id": 81, "category": "writing", "turns": ["Write.", "Again."]})
    assert (found.question, found.answer) == ("Write.", "")
    assert found.extra["turns"] == ["Write.", "Again."]
    assert one({"question_id": 82, "category": "maths", "turns": ["Add."]}).question == "Add."
    assert said(one({"prompt": "Hi", "id": 3}).messages) == [("user", "Hi")]
    assert said(one({"prompt": HI[:1], "source": "x"}).messages) == [("user", "Hi")]
    row = {"prompt": "Hi", "note": "could be the answer"}
    assert refused(row).code == "unknown-shape"
    assert said(one(row, form="prompts").messages) == [("user", "Hi")]


def test_turns_of_the_prompt_are_not_trained() -> None:
    prompt = [*HI, {"role": "user", "content": "And now?"}]
    found = one({"prompt": prompt, "completion": "Goodbye."})
    assert said(found.messages) == LONGER
    assert [message.weight for message in found.messages] == [0, 0, 0, 1]


def test_history_is_trained() -> None:
    found = one({"query": "And now?", "response": "Goodbye.", "history": [["Hi", "Good day!"]]})
    assert [message.weight for message in found.messages] == [0, 1, 0, 1]


# Plain text


def test_text_is_cut_at_paragraphs() -> None:
    paragraph = "All work and no play makes Jack a dull boy. " * 10
    whole = "\n\n".join([paragraph.strip()] * 20)
    found = read({"text": whole, "source": "a book"})
    pieces = [sample.text for sample in found.samples if isinstance(sample, Document)]
    assert "\n\n".join(pieces) == whole
    assert all(CHUNK_CHARACTERS / 2 <= len(piece) <= CHUNK_CHARACTERS for piece in pieces[:-1])
    assert found.samples[1].extra == {"source": "a book", "chunk": 2}


@pytest.mark.parametrize("mark", ["\n\n", "\r\n\r\n", "\n", ". ", " ", ""])
def test_nothing_is_lost_between_pieces(mark: str) -> None:
    whole = mark.join(f"word{number}" for number in range(3000))
    pieces = list(chunks(whole))
    assert all(len(piece) <= CHUNK_CHARACTERS for piece in pieces)
    assert "".join(pieces).replace("\r", "").replace("\n", "") == whole.replace("\r", "").replace(
        "\n", ""
    )


@pytest.mark.parametrize("style", RENDERED)
def test_rendered_chats_are_refused(style: str) -> None:
    user, assistant = RENDERED[style]
    row = {"text": f"{user}: Hi\n{assistant}: Good day!\n"}
    error = refused(row, {"text": "Plain."})
    assert error.code == "rendered-chat"
    assert f"rows.jsonl, row 1: field text: turns marked by {style}" in error.found
    assert '{"messages": ' in error.remedy
    assert isinstance(one(row, form="text"), Document)


def test_plain_text_may_speak_of_markers() -> None:
    rows = [{"text": f"Page {number} of a book."} for number in range(5)]
    rows[3] = {"text": "Prompts of Llama 2 look like [INST] this [/INST]."}
    assert read(*rows).shape.name == "text"


def test_glaive_transcripts_are_refused() -> None:
    row = {"system": "SYSTEM: You can call.", "chat": "USER: Hi\n\n\nASSISTANT: Yo <|endoftext|>"}
    assert "field chat: turns marked by USER: / ASSISTANT:" in refused(row).found


def test_single_turns_are_refused() -> None:
    row = {"message_id": "m", "parent_id": None, "role": "prompter", "text": "Hi", "lang": "en"}
    error = refused(row, row)
    assert (error.code, error.found) == ("single-turns", "rows.jsonl, row 1: columns role and text")


def test_token_ids_are_refused() -> None:
    assert refused({"input_ids": [1, 2], "labels": [1, 2]}).code == "tokenised-rows"


# What is refused as a whole


def test_an_unknown_shape_says_what_to_type() -> None:
    row = {"ref": "1:1", "kjv": "In the beginning", "bbe": "At the first", "n": 3}
    error = refused(row)
    assert error.found == "rows.jsonl, row 1: columns ref, kjv, bbe, n (3)"
    assert error.remedy.startswith(
        '--set \'data.columns={prompt="kjv", completion="bbe"}\', or --set data.format=NAME'
    )
    for number in ({"a": 1}, {}):
        assert 'prompt="COLUMN"' in refused(number).remedy


def test_a_shape_that_the_rows_do_not_have() -> None:
    error = refused({"prompt": "Hi", "completion": "Yo"}, form="alpaca")
    assert error.code == "unknown-shape"
    assert "alpaca needs instruction and output" in error.found


def test_wrong_names_of_the_recipe() -> None:
    row = {"prompt": "Hi", "completion": "Yo"}
    error = refused(row, form="sharegtp")
    assert (error.code, 'did you mean "sharegpt"' in error.found) == ("unknown-format", True)
    error = refused(row, columns={"promt": "prompt"})
    assert (error.code, 'did you mean "prompt"' in error.found) == ("unknown-part", True)
    error = refused(row, columns={"prompt": "promt"})
    assert error.code == "missing-column"
    assert 'no column promt (did you mean "prompt"?); there are prompt, completion' in error.found


def test_columns_that_make_no_shape() -> None:
    error = refused({"a": "x", "b": "y"}, columns={"chosen": "a", "completion": "b"})
    assert error.code == "unknown-shape"
