"""What is wrong with one row by itself, and what of its text can be mended without asking.

Every check first looks for characters without which nothing can be wrong, so that a row of plain
English costs a few dozen substring searches and hardly a regular expression.
"""

from __future__ import annotations

import json
import re
import tomllib
import unicodedata
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import pairwise
from typing import NamedTuple

from ftfy import fix_encoding

from retone.conversation import Conversation, Document, Message
from retone.data.findings import excerpt
from retone.data.private import find_private

# Answers that a spreadsheet, a data frame, a web page or a hurried author writes for none at all.
ARTEFACTS = frozenset(
    ["null", "nan", "none", "n/a", "#n/a", "#name?", "#ref!", "#value!", "todo", "tbd",
     "[deleted]", "[removed]", "[object object]"]
)  # fmt: skip

# Tags of tool calls and of thinking are no faults: rows hold them on purpose.
CONTROL_TOKEN = re.compile(
    r"""
    <[|\uff5c][\w▁./-]{1,40}[|\uff5c]>          # ChatML, Llama 3, Phi, Granite, DeepSeek, GLM ...
    | <\|(?:turn|channel|tool_call)> | <(?:turn|channel|tool_call)\|>            # Gemma 4
    | <(?:start|end)_of_turn> | <(?:bos|eos|pad|unk|sop|eop)>       # Gemma, SentencePiece, GLM
    | \[/?INST\] | <</?SYS>> | \[gMASK\]                                         # Llama 2, GLM
    | \[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]            # Mistral
    | \[(?:PAD|UNK|CLS|SEP|MASK)\]                                               # BERT
    | ^\#\#\#\ (?:Instruction|Response|Human|Assistant):                         # Alpaca, Vicuna
    """,
    re.VERBOSE | re.MULTILINE,
)

# Each begins with one character of a set, so that the engine skips all others quickly.
PLACEHOLDER = re.compile(
    r"""
    [\[<{lLTX](?:
        (?<=\[) (?i:your|insert|enter)[ _][^\[\]\n]{1,60}\](?!\()  # a link has its address behind
        | (?<=\[) (?:[A-Z][\w'\u2019]*[ ]){0,2}                 # not the labels of `private.redact`
            (?:Name|Address|Date|City|Company|Title|Number|Amount|Link)\](?!\()
        | (?<=<) (?i:insert|your|enter)[ _-][^<>=\n]{1,60}>       # a tag's attributes have a =
        | (?<=\{) \{[ ]*[\w.]+[ ]*\}\}
        | (?<![\w$\#\\}"'/%(=\[{]\{)(?<=\{) [a-z][a-z0-9_]{2,}\}(?![\w{"'/(\]}])  # format
        | (?<=\b[lL]) (?i:orem[ ]ipsum\b)
        | (?<=\bT) BD\b
        | (?<=\bX)  # but for the Roman number 30
            (?<!Bowl[ ]X) (?<!Chapter[ ]X) (?<!Book[ ]X) (?<!Part[ ]X) XX+\b
    )
    """,
    re.VERBOSE,
)
_PLACEHOLDER_TRIGGERS = ("[", "{", "<", "rem ipsum", "rem Ipsum", "TBD", "XXX")
_BLANK_START = re.compile(r"\A(?:[^\S\n]*\n)+")
_INDENTED = re.compile(r"(?:  |\t).*\n")  # the first of several lines may be code
_FENCE = re.compile(r"(```.*?(?:```|\Z))", re.DOTALL)
_CODE = re.compile(rf"{_FENCE.pattern}|`[^`\n]+`", re.DOTALL)
_END_MARKS = " .!?\u2026\u3002\uff01\uff1f"  # the last three are those of Chinese

# Zero-width characters are meant between letters of scripts that need them: the space in those of
# Southeast Asia, joiners behind Arabic and Indic letters and inside emoji.
_INVISIBLE = re.compile(
    "[\ufeff\u2060\u00ad\u200b-\u200d]"
    "(?<![\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]\u200b)(?<![^\\x00-\\x7f][\u200c\u200d])"
)
# One such space stands before a colon in French; several are what a web page was laid out with.
_HARD_SPACES = re.compile("\xa0[\xa0 ]+|[ ]\xa0[\xa0 ]*")
# Without one of these ftfy finds nothing: two neighbours out of the letters and signs that bytes
# of UTF-8 become in other encodings (no script east of Russia), or one that tells alone.
_ODD = "[\x80-\u04ff\u2010-\u25ff\uf8ff\ufb00-\ufb06\ufffd]"
_SUSPECT = re.compile(f"{_ODD}(?:{_ODD}|(?<=[\x80-\x9fŒœÃÂ]))")
# Two spaces at the end of a line that is not the last of its paragraph break it in Markdown.
_LINE_END = re.compile(r"^[ \t]+(?=\n)|(?<=\S)(?!  \n\S)[ \t]+(?=\n)", re.MULTILINE)


class Fault(NamedTuple):
    """One thing that is wrong: in which text, and where in it.

    Attributes:
        code: key of `findings.CHECKS`.
        text: where it stands, from `start` to `end`.
        said: put before the excerpt.
    """

    code: str
    text: str
    start: int = 0
    end: int = 0
    said: str = ""

    def shown(self) -> str:
        """An excerpt; what is secret or personal data is stars there."""
        around = excerpt(self.text, self.start, self.end)
        return f"{self.said}: {around}" if self.said else around


class Phrase(NamedTuple):
    """A row `phrase` of tables/residue.toml; its header says what the fields mean."""

    trigger: str
    pattern: re.Pattern[str]


def row_faults(sample: Conversation | Document) -> list[Fault]:
    """Everything that is wrong with one row by itself: the first fault of each code."""
    found: dict[str, Fault] = {}
    for fault in _faults(sample):
        found.setdefault(fault.code, fault)
    return list(found.values())


def mended(text: str) -> str:
    """`text` without those faults that can be mended without asking; what is sound stays as it is.

    Mended are text decoded with the wrong encoding (ftfy's `fix_encoding`, which leaves quotes,
    ligatures, wide letters and HTML alone), carriage returns, characters that cannot be seen and
    mean nothing, runs of non-breaking spaces, and white space at the ends of lines and of the text.
    Lines keep their indentation; lines in code fences keep their ends too.
    """
    while (better := _mended_once(text)) != text:  # what was decoded may itself be a hidden mark
        text = better
    return text


def _faults(sample: Conversation | Document) -> Iterator[Fault]:
    if isinstance(sample, Document):
        yield from _text_faults(sample.text)
        return
    for message in sample.messages:
        for text in filter(None, (message.content, message.thinking)):
            yield from _text_faults(text)
    for said in (*(message.tool_calls for message in sample.messages), sample.tools):
        if said:
            yield from _private_faults(json.dumps(said, ensure_ascii=False))
    yield from _role_faults(sample.messages)
    for at, message in enumerate(sample.messages):
        before = sample.messages[:at]
        if message.role == "system":
            yield from _placeholders(message.content, before)
        elif _is_trained(message):
            yield from _answer_faults(message, before)


def _text_faults(text: str) -> Iterator[Fault]:
    """What is wrong in any text, whoever says it."""
    if span := _control_token(text):
        yield Fault("special-token", text, *span)
    if span := _mojibake(text):
        yield Fault("mojibake", text, *span)
    yield from _private_faults(text)


def _private_faults(text: str) -> Iterator[Fault]:
    for private in find_private(text):
        yield Fault(private.code, text, private.start, private.end, private.kind)


def _answer_faults(message: Message, before: tuple[Message, ...]) -> Iterator[Fault]:
    """What is wrong with an answer that is trained."""
    answer = message.content
    if _says_nothing(answer):
        if not message.tool_calls:
            yield Fault("empty-answer", answer)
        return
    if span := _residue(answer):
        yield Fault("teacher-residue", answer, *span)
    yield from _white_space(answer)
    yield from _placeholders(answer, before)
    if before and before[-1].role == "user" and _repeats(before[-1].content, answer):
        yield Fault("answer-equals-prompt", answer)


def _role_faults(messages: tuple[Message, ...]) -> Iterator[Fault]:
    """Turns out of turn. Rows without any answer are prompts, which may be whatever they are."""
    turns = [message for message in messages if message.role != "system"]
    if all(turn.role != "assistant" for turn in turns):
        return
    first, last = turns[0], turns[-1]
    if first.role != "user":
        yield Fault("role-order", first.content, said=f"the {first.role} speaks first")
    for one, other in pairwise(turns):
        if one.role == other.role != "tool":
            yield Fault("role-order", other.content, said=f"{other.role} after {one.role}")
        if other.role == "tool" and not (one.role == "tool" or one.tool_calls):
            yield Fault("role-order", other.content, said="a tool answers that was not called")
    if last.role != "assistant":
        yield Fault("role-order", last.content, said=f"the {last.role} speaks last")


def _is_trained(message: Message) -> bool:
    if message.role != "assistant":
        return False
    return any(weight > 0 for _, weight in message.spans) if message.spans else message.weight > 0


def _says_nothing(answer: str) -> bool:
    """Whether it stands for no answer, or holds no letter, no digit and no symbol (an emoji, +)."""
    if len(answer) < 20 and answer.strip().casefold() in ARTEFACTS:
        return True
    return not any(
        letter.isalnum() or unicodedata.category(letter) in ("So", "Sm", "Sc") for letter in answer
    )


def _repeats(prompt: str, answer: str) -> bool:
    """Whether both say the same but for case, spacing and the punctuation at the end."""
    same_start = prompt.lstrip()[:1].casefold() == answer.lstrip()[:1].casefold()
    return same_start and _plain(prompt) == _plain(answer)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(_END_MARKS)


def _residue(answer: str) -> tuple[int, int] | None:
    openings, phrases = _residue_table()
    said = answer.lower().replace("\u2019", "'")
    found = openings.match(said)
    if found:
        return found.span()
    for trigger, pattern in phrases:
        if trigger in said and (found := pattern.search(said)):
            return found.span()
    return None


@cache
def _residue_table() -> tuple[re.Pattern[str], tuple[Phrase, ...]]:
    """What an answer begins with, in one pattern, and what may stand anywhere."""
    text = (files("retone") / "tables" / "residue.toml").read_text(encoding="utf-8")
    table = tomllib.loads(text)
    openings = "|".join(row["pattern"] for row in table["opening"])
    phrases = (Phrase(row["trigger"], re.compile(row["pattern"])) for row in table["phrase"])
    return re.compile(rf"\s*(?:{openings})"), tuple(phrases)


def _control_token(text: str) -> tuple[int, int] | None:
    if "<" not in text and "[" not in text and "###" not in text:
        return None
    if found := CONTROL_TOKEN.search(text):
        return found.span()
    # <s> and </s> are control tokens at the edges of a text. In HTML they strike out what is
    # between them, so neither stands at an edge without the other nearby.
    inner = text.strip()
    if inner.startswith("<s>") and inner.find("</s>", 0, -4) < 0:
        return 0, 3
    if inner.endswith("</s>") and inner.find("<s>", 1) < 0:
        return len(text) - 4, len(text)
    return None


def _mojibake(text: str) -> tuple[int, int] | None:
    """Where something stands that was lost, or that reads better when it is decoded once more."""
    if text.isascii():
        return None
    lost = text.find("\ufffd")
    if lost >= 0:
        return lost, lost + 1
    at = 0
    for line in text.split("\n"):
        if (fixed := _decoded(line)) != line:
            pairs = enumerate(zip(line, fixed, strict=False))
            start = at + next((n for n, (old, new) in pairs if old != new), len(fixed))
            return start, start + 1
        at += len(line) + 1
    return None


def _decoded(line: str) -> str:
    """The line as it was meant, where it was decoded with the wrong encoding."""
    return line if line.isascii() or not _SUSPECT.search(line) else fix_encoding(line)


def _white_space(answer: str) -> Iterator[Fault]:
    if "\r" in answer:
        yield Fault("white-space", answer, said="a carriage return")
    if answer[:1].isspace() and not _INDENTED.match(answer):
        yield Fault("white-space", answer, said="white space before it")
    if answer[-1:].isspace():
        yield Fault("white-space", answer, len(answer) - 1, len(answer), "white space behind it")
    if answer.isascii():
        return
    if found := _INVISIBLE.search(answer):
        yield Fault("white-space", answer, *found.span(), f"U+{ord(found[0]):04X}")
    if "\xa0" in answer and (found := _HARD_SPACES.search(answer)):
        yield Fault("white-space", answer, *found.span(), "non-breaking spaces")


def _placeholders(text: str, before: tuple[Message, ...]) -> Iterator[Fault]:
    """Placeholders outside of code that were not in what was asked: a template may be wanted."""
    if not any(trigger in text for trigger in _PLACEHOLDER_TRIGGERS):
        return
    prose = _CODE.sub(lambda code: " " * len(code[0]), text) if "`" in text else text
    for found in PLACEHOLDER.finditer(prose):
        if not any(found[0] in turn.content for turn in before):
            yield Fault("placeholder", text, *found.span())


def _mended_once(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = _INVISIBLE.sub("", text)
        text = _HARD_SPACES.sub(lambda run: " " * len(run[0]), text)
        text = "\n".join(map(_decoded, text.split("\n")))
    if " \n" in text or "\t\n" in text:
        pieces = _FENCE.split(text)
        pieces[::2] = (_LINE_END.sub("", prose) for prose in pieces[::2])
        text = "".join(pieces)
    text = _BLANK_START.sub("", text).rstrip()
    return text if _INDENTED.match(text) else text.lstrip()
