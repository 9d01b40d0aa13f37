"""What is wrong with one row: every check has a text that sets it off and one that nearly does."""

# ruff: noqa: RUF001  (letters that look alike are what is tested)

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retone.conversation import Conversation, Document, Message
from retone.data.findings import CHECKS
from retone.data.row_checks import mended, row_faults

DATA = Path(__file__).parents[3] / "shared" / "data"
TOKENIZERS = DATA / "tokenizers"

Row = str | Conversation


def chat(*said: str | Message) -> Conversation:
    """Turns that alternate, the user begins; messages stand as they are."""
    roles: Any = ("user", "assistant")
    turns = (
        turn if isinstance(turn, Message) else Message(roles[at % 2], turn)
        for at, turn in enumerate(said)
    )
    return Conversation(tuple(turns))


def answer(text: str = "", **fields: Any) -> Message:
    return Message("assistant", text, **fields)


def system(text: str) -> Message:
    return Message("system", text)


CALL = {"type": "function", "function": {"name": "weather", "arguments": {}}}
RESULT = Message("tool", "18 degrees", name="weather")

# (code, name, an answer or a row that sets it off, one that is nearly the same and does not)
CASES: list[tuple[str, str, Row, Row]] = [
    ("empty-answer", "nothing at all", "", "7"),
    ("empty-answer", "white space", " \n", "是"),
    ("empty-answer", "punctuation", "...", "No."),
    ("empty-answer", "a rule of dashes", "---", "👍"),
    ("empty-answer", "null", "null", "Null is a value."),
    ("empty-answer", "NaN", "NaN", "naan"),
    ("empty-answer", "None", "None", "None of them."),
    ("empty-answer", "n/a", " N/A\n", "N/A means not applicable."),
    ("empty-answer", "TODO", "TODO", "Todo lists help."),
    ("empty-answer", "a spreadsheet error", "#REF!", "#1"),
    (
        "empty-answer", "no call either", chat("Rain?", ""),
        chat("Rain?", answer(tool_calls=(CALL,)), RESULT, answer("No rain.")),
    ),
    (
        "empty-answer", "a turn that is trained", chat("Hi", answer("-")),
        chat("Hi", answer("-", loss_weight=0.0), "Hello?", answer("Hello!")),
    ),
    (
        "answer-equals-prompt", "case, spacing and the full stop aside",
        chat("The  cat sat on the mat.", "the cat sat on the mat"),
        chat("The cat sat on the mat.", "The cat lay on the mat."),
    ),
    (
        "answer-equals-prompt", "white space before it", chat("Leave this.", "\nLeave this."),
        chat("Leave this.", "Leave this be."),
    ),
    (
        "answer-equals-prompt", "in a later turn", chat("Hi", "Hello!", "Bye now", "Bye now!"),
        chat("Hello!", "Hi", "Good", "Hello!"),
    ),
    (
        "teacher-residue", "as an AI language model",
        "As an AI language model, I cannot say.", "As an AI researcher, I cannot say.",
    ),
    (
        "teacher-residue", "as a language model",
        "As a large language model, my view is limited.",
        "BERT is used as a language model, mostly.",
    ),
    (
        "teacher-residue", "I am a language model",
        "I’m an AI language model and cannot draw.",
        "I'm a language model called Ada, and I was trained by our team.",
    ),
    (
        "teacher-residue", "as an AI", "As an AI, I don’t have a house.",
        "As an AI therapist, I listen.",
    ),
    (
        "teacher-residue", "sure, here is",
        "Sure! Here is a poem about rain.", "Sure, here in town it rains.",
    ),
    (
        "teacher-residue", "certainly, here are",
        "Certainly, here are three ideas: tea, rest, sleep.",
        "Certainly, here are dragons.",
    ),
    (
        "teacher-residue", "here is the rewritten text",
        "Here's the rewritten sentence: It rains.", "Here's the corrected time: 5 pm.",
    ),
    (
        "teacher-residue", "I hope this helps",
        "Turn it off and on. I hope this helps!", "We hope this helps the garden recover.",
    ),
    (
        "teacher-residue", "I can't assist with that",
        "I'm sorry, but I can’t assist with that.", "I'm sorry, but I can't come on Monday.",
    ),
    (
        "teacher-residue", "I am unable to help",
        "I'm sorry, but I am unable to provide medical advice.",
        "I'm sorry, but the shop is unable to provide a bag.",
    ),
    (
        "teacher-residue", "knowledge cut-off",
        "My knowledge cutoff is September 2021.", "My paper cut-off is ten pages.",
    ),
    (
        "teacher-residue", "last knowledge update",
        "As of my last knowledge update in 2022, no.", "As of my last visit in 2022, no.",
    ),
    (
        "teacher-residue", "real-time data",
        "I do not have access to real-time prices.", "We do not have real-time trains here.",
    ),
    ("teacher-residue", "ChatGPT speaks", "I am ChatGPT.", "I asked ChatGPT and was told so."),
    (
        "teacher-residue", "made by OpenAI", "I'm an assistant developed by OpenAI.",
        "GPT-3 is an artificial intelligence (AI) program developed by OpenAI.",
    ),
    (
        "teacher-residue", "what a page leaves behind", "It rains.\n\nRegenerate response",
        "Do not regenerate responses.",
    ),
    (
        "teacher-residue", "German", "Als KI-Sprachmodell kann ich das nicht.",
        "Ein Sprachmodell sagt Wörter voraus.",
    ),
    (
        "teacher-residue", "French", "En tant que modèle de langage, je ne peux pas.",
        "En tant que médecin, je ne peux pas.",
    ),
    (
        "teacher-residue", "Spanish", "Como modelo de lenguaje, no puedo opinar.",
        "Como modelo de ropa, no puedo opinar.",
    ),
    (
        "teacher-residue", "Chinese", "作为一个人工智能语言模型，我无法回答。",
        "作为一个老师，我无法回答。",
    ),
    (
        "teacher-residue", "Russian", "Как языковая модель, я не могу.",
        "Эта языковая модель мала.",
    ),
    (
        "teacher-residue", "said by the assistant", chat("Hi", "As an AI, I am well."),
        chat("As an AI, I am well. Rewrite this.", "The speaker is well."),
    ),
    (
        "role-order", "two turns of the user",
        chat("Hi", Message("user", "Are you there?"), answer("Yes.")),
        chat("Hi", "Yes?", "Are you there?", "Yes."),
    ),
    (
        "role-order", "two turns of the assistant", chat("Hi", "Hello.", answer("Well?")),
        chat("Hi", answer(tool_calls=(CALL,)), RESULT, answer("18 degrees.")),
    ),
    (
        "role-order", "the assistant begins", chat(system("Be kind."), answer("Hello.")),
        chat(system("Be kind."), Message("user", "Hi"), answer("Hello.")),
    ),
    (
        "role-order", "the user speaks last", chat("Hi", "Hello.", "Bye"),
        chat("Hi", "Hello.", "Bye", "Bye."),
    ),
    (
        "role-order", "no call before the tool", chat("Rain?", RESULT, answer("No.")),
        chat("Rain?", answer(tool_calls=(CALL, CALL)), RESULT, RESULT, answer("No.")),
    ),
    (
        "role-order", "the tool speaks last", chat("Rain?", answer(tool_calls=(CALL,)), RESULT),
        chat("A prompt without any answer."),
    ),
    ("special-token", "ChatML", "Hello<|im_end|>", "a <|> b, c <| d |> e"),
    ("special-token", "end of text", "Hello\n<|endoftext|>", "the end|of|text"),
    ("special-token", "Llama 3", "<|eot_id|>", "x<y|z>w"),
    ("special-token", "DeepSeek", "Hi <｜end▁of▁sentence｜>", "Hi ｜ bye"),
    ("special-token", "Gemma", "<start_of_turn>user", "<start>user"),
    ("special-token", "Gemma 4", "<|turn>user", "It is your <b>turn</b>, user"),
    ("special-token", "Llama 2", "[INST] Hi [/INST]", "[INSTALL] Hi [1]"),
    ("special-token", "Llama 2, system", "<<SYS>> Be kind", "cat <<EOF >> Be kind"),
    ("special-token", "<s> at the start", "<s> Hello", "<s>struck</s> and kept"),
    ("special-token", "</s> at the end", "Hello</s>", "kept and <s>struck</s>"),
    ("special-token", "both edges", "<s>Hello</s>", "<section>Hello</section>"),
    ("special-token", "Alpaca", "Yes.\n### Response:\nNo.", "Yes.\n### Response times\nLow."),
    ("special-token", "Vicuna", "### Human: Hi", "#### Human: an essay"),
    ("special-token", "Mistral", "[TOOL_CALLS] []", "[TOOLS] []"),
    (
        "special-token", "whoever says it", chat("Hi<|im_end|>", "Hello."),
        chat("Hi <end>", "Hello."),
    ),
    ("mojibake", "UTF-8 read as Latin-1", "The cafÃ© is open.", "The café is open."),
    ("mojibake", "quotes", "donâ€™t", "don’t, “really” – no…"),
    ("mojibake", "what was lost", "don\ufffdt", "don?t"),
    ("mojibake", "a lone capital", "voilÃ le travail", "VOILÀ LE TRAVAIL, São João, Âge"),
    ("mojibake", "an emoji", "Great ðŸ˜€", "Great 😀 ❤️ 👩\u200d👩\u200d👧"),
    ("mojibake", "Cyrillic", "ÐŸÑ€Ð¸Ð²ÐµÑ‚", "Привет, мир! «Да» — №5"),
    ("mojibake", "Chinese", "ä½\xa0å¥½", "你好，“世界”…"),
    ("mojibake", "control characters", "it\x92s", "20 °C ± 2, ½ × 3², £5, 10 µm, §4, ©2020"),
    ("mojibake", "whoever says it", chat("cafÃ©?", "Yes."), chat("café?", "Yes.")),
    ("white-space", "before", "\n Hello", "Hello\n there"),
    ("white-space", "behind", "Hello \n", "Hello  \nthere"),
    ("white-space", "carriage return", "a\r\nb", "a\n\nb"),
    ("white-space", "byte order mark", "\ufeffHello", "Hello"),
    ("white-space", "zero-width space", "Hel\u200blo", "ភាសា\u200bខ្មែរ"),
    ("white-space", "soft hyphen", "Hydro\u00adgen", "Hydro-gen"),
    ("white-space", "joiner", "a\u200db", "👩\u200d🚀 and क्\u200dष"),
    ("white-space", "non-joiner", "of\u200cfer", "می\u200cخواهم"),
    ("white-space", "non-breaking spaces", "a\xa0\xa0b", "Vraiment\xa0?"),
    (
        "white-space", "in the answer", chat("Hi", "Hello "),
        chat("Hi ", answer("Hello ", loss_weight=0.0), "Bye\r\n", "Bye."),
    ),
    ("placeholder", "your name", "Yours, [Your Name]", "Log in to [Your Account](/login)."),
    ("placeholder", "insert", "On [insert date] we met.", "Press [Insert] to paste."),
    ("placeholder", "of somebody", "Dear [Customer’s Name],", "[Customer] is a type. See [1]."),
    ("placeholder", "of a thing", "To [Charity Name]", "To [E-MAIL ADDRESS]"),
    ("placeholder", "in angle brackets", "Call <insert number>.", '<insert id="a">x</insert>'),
    ("placeholder", "a template", "Hi {{ user.name }}!", "```jinja\nHi {{ user.name }}!\n```"),
    ("placeholder", "a format field", "Hello {name}!", 'Print f"{name}" or {"name": 1}, {x}.'),
    ("placeholder", "code in a line", "Dear {first_name},", "Write `Dear {first_name},`."),
    ("placeholder", "LaTeX", "It is {amount}.", r"It is \frac{num}{den}."),
    ("placeholder", "filler", "Lorem ipsum dolor sit amet.", "It is filler text."),
    ("placeholder", "TBD", "The date is TBD.", "The TBDA met."),
    ("placeholder", "XXX", "Call XXX-XXX now.", "Super Bowl XXX was in 1996."),
    (
        "placeholder", "nobody asked for it", chat("Write a letter.", "Yours, [Your Name]"),
        chat("Fill this in: Dear [Your Name]", "Dear [Your Name], I am well."),
    ),
    (
        "placeholder", "in the system prompt",
        chat(system("You are {persona}."), Message("user", "Hi"), answer("Hello.")),
        chat(system("You are Ada."), Message("user", "What is {persona}?"), answer("A field.")),
    ),
    (
        "secret", "a key", "Use AKIA" + "Q3EGRIJ5KQ7XZ2MB" + " for it.",
        "Use AKIAIOSFODNN7EXAMPLE for it.",
    ),
    (
        "personal-data", "whoever says it", chat("I am jane.smith@gmail.com", "Hello."),
        chat("I am jane.smith at gmail", "Hello."),
    ),
]  # fmt: skip


def codes(row: Row) -> list[str]:
    sample = row if isinstance(row, Conversation) else chat("What is asked?", row)
    return [fault.code for fault in row_faults(sample)]


@pytest.mark.parametrize(
    ("code", "wrong", "near_miss"),
    [pytest.param(code, *rows, id=f"{code}: {name}") for code, name, *rows in CASES],
)
def test_what_is_wrong_is_found_and_what_only_looks_so_is_not(
    code: str, wrong: Row, near_miss: Row
) -> None:
    assert code in codes(wrong)
    assert code not in codes(near_miss)


def test_every_code_is_known_and_named_once() -> None:
    assert {code for code, *_ in CASES} <= CHECKS.keys()
    found = codes(chat("cafÃ©<|im_end|>", "<s> donâ€™t \r\n"))
    assert sorted(found) == ["mojibake", "special-token", "white-space"]


@pytest.mark.parametrize(
    ("text", "code"),
    [("Hi<|im_end|>", "special-token"), ("cafÃ©", "mojibake"),
     ("jane.smith@gmail.com", "personal-data")],
)  # fmt: skip
def test_documents_are_read_as_texts(text: str, code: str) -> None:
    assert [fault.code for fault in row_faults(Document(text))] == [code]
    assert row_faults(Document(" [Your Name], as an AI, I am null\r\n")) == []


def test_excerpts_show_the_place_and_nothing_private() -> None:
    text = "word " * 60 + "jane.smith@gmail.com said donâ€™t <|im_end|>" + " word" * 60
    hits = {fault.code: fault.shown() for fault in row_faults(chat("Hi", text))}
    assert hits.keys() == {"special-token", "mojibake", "personal-data"}
    assert "<|im_end|>" in hits["special-token"]
    assert "donâ€™t" in hits["mojibake"]
    assert hits["personal-data"].startswith("e-mail address: …")
    assert all("jane" not in shown and "*****" in shown for shown in hits.values())


@pytest.mark.skipif(not TOKENIZERS.exists(), reason=f"no test data in {TOKENIZERS}")
def test_control_tokens_of_real_tokenizers_are_known() -> None:
    told = ("think", "tool_call", "tool_response")  # what they hold is wanted
    tags = {f"<{slash}{tag}>" for slash in ("", "/") for tag in told}
    seen = 0
    for folder in sorted(TOKENIZERS.iterdir()):
        file = next(folder.glob("tokenizer.json*"))
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        tokens = {token["content"] for token in json.loads(raw)["added_tokens"]} - tags
        missed = {t for t in tokens if "special-token" not in codes(f"{t} Hello {t}")}
        # These stand at the edges only.
        assert missed <= {"</s>"}, folder.name
        seen += len(tokens)
    assert seen > 290


# Mending


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("cafÃ© donâ€™t", "café don’t"),
        ("good line é\nbad line Ã©", "good line é\nbad line é"),
        ("ï»¿Hello", "Hello"),
        ("a\r\nb\rc", "a\nb\nc"),
        (" Hello \t\n", "Hello"),
        ("one \t\ntwo   \n \nthree", "one\ntwo\n\nthree"),
        ("broken  \non purpose", "broken  \non purpose"),
        ("\ufeffHel\u200blo a\xa0\xa0b", "Hello a  b"),
        ("Hydro\u00adgen a\u200db", "Hydrogen ab"),
        ("if so:\n    indent", "if so:\n    indent"),
        ("- a \n  ```\n  b \n  ```\nc", "- a\n  ```\n  b \n  ```\nc"),
        ("see ```c``` ```d``` \ne", "see ```c``` ```d```\ne"),
        ("x \t\n```py\n    a  \n\tb\t\n```\ny  \n", "x\n```py\n    a  \n\tb\t\n```\ny"),
    ],
)
def test_faults_are_mended(broken: str, whole: str) -> None:
    assert mended(broken) == whole


@pytest.mark.parametrize(
    "text",
    [
        "“Curly” ‘quotes’ – and… ﬁne ﬂow",  # ftfy's other fixers would change all of these
        "ＷＩＤＥ　ｶﾀｶﾅ",
        "a &amp; b &lt; c &eacute; \x1b[31mred",
        "e\u0301 is not normalised",
        "می\u200cخواهم, क्\u200dष, 👩\u200d🚀, ភាសា\u200bខ្មែរ",
        "Vraiment\xa0? Oui\u202f!",
        "tree\n├── a\n│   └── b",
        "Привет, мир! «Да» — №5",
        "你好，“世界”…",
        "20 °C ± 2, ½ × 3², £5, 10 µm",
    ],
)
def test_sound_text_is_left_alone(text: str) -> None:
    assert mended(text) == text
    assert codes(text) == []


FAULTY = st.text(
    st.sampled_from("ab \t\n\r`Ãâ€™©é\xa0\x85\x92\ufffdðŸ˜€ï»¿\ufeff\u200b\u200c\u200d\u00ad你ی👩"),
    max_size=30,
)


@given(FAULTY | FAULTY.map(lambda text: text.encode().decode("cp1252", "replace")))
def test_mending_is_done_at_once_and_leaves_no_white_space_to_find(text: str) -> None:
    once = mended(text)
    assert mended(once) == once
    assert "white-space" not in codes(once)


@given(st.text())
def test_mending_is_done_at_once_with_any_text(text: str) -> None:
    once = mended(text)
    assert mended(once) == once


WORDS = st.text(
    st.characters(categories=["Lu", "Ll", "Nd", "Po", "Lo", "So"], max_codepoint=0x7E), min_size=1
)


@given(st.lists(st.lists(WORDS | st.sampled_from(["é", "“", "你好", "😀", "    x"])), min_size=1))
def test_text_without_faults_is_never_changed(lines: list[list[str]]) -> None:
    text = "\n".join(" ".join(line) for line in lines).strip()
    if not {"white-space", "mojibake"} & set(codes(text)):
        assert mended(text) == text
