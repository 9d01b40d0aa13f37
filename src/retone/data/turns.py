"""One turn of a conversation in any tool's spelling -> Message.

The spellings are those of OpenAI, ShareGPT, TRL, Axolotl, LlamaFactory, ms-swift, OpenAssistant,
Capybara, LIMA and UltraChat. What cannot be trained on (images, audio) is refused, never skipped.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, cast

from retone.conversation import Conversation, Message, Role
from retone.data.fields import (
    SYSTEM_COLUMNS,
    Reading,
    RowProblem,
    as_list,
    as_text,
    brief,
    optional_text,
    parsed,
)
from retone.data.sources import Row
from retone.errors import nearest

CHAT_COLUMNS = ("messages", "conversations", "conversation", "chat", "dialog", "dialogue", "data")
ROLE_KEYS = ("role", "from", "speaker")
CONTENT_KEYS = ("content", "value", "text", "message")
THINKING_KEYS = ("reasoning_content", "reasoning", "thinking")
WEIGHT_KEYS = ("loss_weight", "weight", "train", "training")
# Two turns in one object, as some tools write them.
EXCHANGES = (
    ("human", "assistant"),
    ("user", "assistant"),
    ("input", "output"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("question", "answer"),
)
CALL = "call"  # a turn that is nothing but a tool call
SPELLINGS: dict[str, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "bing", "bard"),
    "tool": ("tool", "function", "observation", "function_response", "tool_response", "ipython"),
    CALL: ("function_call", "tool_call"),
}
ROLE_OF = {spelling: role for role, spellings in SPELLINGS.items() for spelling in spellings}
TEXT_PARTS = ("text", "input_text", "output_text")
MEDIA = ("images", "image", "videos", "video", "audios", "audio")
# Keys of a turn that must not be passed over, and why they are refused.
NOT_READ = {
    **dict.fromkeys(MEDIA, "only text is trained"),
    **dict.fromkeys(
        ("train_detail", "training_detail"),
        'parts of a turn get their weights as content: [{"type": "text", "text": ..., '
        '"loss_weight": ...}]',
    ),
}
TOOL_COLUMNS = ("tools", "functions")
CONTEXT_COLUMNS = (*SYSTEM_COLUMNS, *TOOL_COLUMNS)  # read with every shape that has turns


def find_messages(row: Row) -> Reading | None:
    """Turns with a role and a content, as OpenAI, TRL and most tools write them."""
    for column in CHAT_COLUMNS:
        if turn_style(row.get(column)) == "role":
            return _chat_reading(column, f"column {column} with role and content", strict=False)
    if "messages" in row and turn_style(row["messages"]) is None:
        return _chat_reading("messages", "column messages", strict=False)
    return None


def find_sharegpt(row: Row) -> Reading | None:
    """Turns with from and value, as exchanges of two turns, or as bare texts that take turns."""
    said = {
        "from": "from and value",
        "exchange": "a question and an answer in each entry",
        "strings": "texts that take turns",
    }
    for column in CHAT_COLUMNS:
        style = turn_style(row.get(column))
        if style in said:
            return _chat_reading(column, f"column {column} with {said[style]}", strict=True)
    if "conversations" in row and turn_style(row["conversations"]) is None:
        return _chat_reading("conversations", "column conversations", strict=True)
    return None


def _chat_reading(column: str, evidence: str, *, strict: bool) -> Reading:
    def read(row: Row) -> list[Conversation]:
        messages = read_turns(row.get(column), column)
        if strict:
            check_alternation(messages, column)
        return [conversation(row, messages)]

    return Reading(evidence, (column, *CONTEXT_COLUMNS), read)


def turn_style(value: Any) -> str | None:
    """How a column spells turns: `role`, `from`, `exchange` or `strings`; None where it has none.

    The first turn tells.
    """
    turns = as_list(value)
    first = turns[0] if turns else None
    if isinstance(first, str) and turns and len(turns) > 1:
        return "strings"
    if not isinstance(first, dict):
        return None
    for key in ROLE_KEYS:
        if key in first:
            return "role" if key == "role" else "from"
    return "exchange" if _exchange(first) else None


def conversation(row: Row, messages: Sequence[Message], **extra: Any) -> Conversation:
    """The conversation of a row, with the system prompt and the tools of its own columns."""
    system = optional_text(row, *SYSTEM_COLUMNS)
    return Conversation(with_system(messages, system), extra=extra, tools=read_tools(row))


def with_system(messages: Sequence[Message], system: str) -> tuple[Message, ...]:
    """`messages` behind the system prompt, unless it is empty or they have their own."""
    if not system or (messages and messages[0].role == "system"):
        return tuple(messages)
    return (Message("system", system), *messages)


def read_turns(value: Any, place: str) -> list[Message]:
    """The turns of a list in any spelling.

    A tool call without text belongs to the assistant turn right before it, and a tool's answer
    without a name gets that of the call that it answers.
    """
    turns = as_list(value)
    if not turns:
        raise RowProblem(place, f"a list of turns is expected, found {brief(value)}")
    messages: list[Message] = []
    called: dict[str, str] = {}  # id of a call -> name of the tool
    waiting: list[str] = []  # tools called by the last assistant turn and not answered yet
    for index, turn in enumerate(turns):
        for message in _read_entry(turn, index, f"{place}[{index}]"):
            if message.role == "tool":
                name = message.name or called.get(str(turn.get("tool_call_id")), "")
                name = name or (waiting[0] if waiting else "")
                if name in waiting:
                    waiting.remove(name)
                messages.append(replace(message, name=name))
                continue
            tools = [(str(call.get("id", "")), _tool_of(call)) for call in message.tool_calls]
            called.update(tools)
            last = messages[-1] if messages else None
            wordless = tools and not message.content and not message.thinking
            if wordless and last is not None and last.role == "assistant":
                messages[-1] = replace(last, tool_calls=last.tool_calls + message.tool_calls)
            else:
                messages.append(message)
                waiting = []
            waiting += [name for _, name in tools]
    return messages


def check_alternation(messages: Sequence[Message], place: str) -> None:
    """RowProblem where one speaker has two turns in a row; tools may answer one after another."""
    for one, other in pairwise(messages):
        if one.role == other.role != "tool":
            said = f"{brief(one.content)} and {brief(other.content)}"
            raise RowProblem(place, f"two turns of the {one.role} follow each other, {said}")


def read_turn(turn: Any, place: str) -> Message:
    """One object with a role and a content."""
    keys = list(turn) if isinstance(turn, dict) else []
    role_key = next((key for key in ROLE_KEYS if key in keys and turn[key] is not None), None)
    if role_key is None:
        found = f"keys {', '.join(map(str, keys))}" if keys else brief(turn)
        raise RowProblem(place, f"an object with role and content is expected, found {found}")
    for key in NOT_READ:
        if turn.get(key):
            raise RowProblem(f"{place}.{key}", f"{NOT_READ[key]}, found {brief(turn[key])}")
    spelled = _role(turn[role_key], f"{place}.{role_key}")
    role = cast(Role, "assistant" if spelled == CALL else spelled)
    given = [key for key in CONTENT_KEYS if turn.get(key) is not None]
    content_key = given[0] if given else "content"
    said, at = turn.get(content_key), f"{place}.{content_key}"
    weight = _weight(turn, place)
    if spelled == CALL:
        return Message(role, "", weight, tool_calls=read_calls(said, at))
    calls = _calls_of(turn, place)
    text, spans, thinking = _content(said, at, role, weight)
    for key in THINKING_KEYS:
        thinking = thinking or optional_text(turn, key, place=f"{place}.")
    if not calls and role != "tool":  # a call needs no words, and a tool may answer nothing
        as_text(None if said is None else text, at)
    name = turn.get("name")
    named = name if role == "tool" and isinstance(name, str) else ""
    return Message(role, text, weight, spans, calls, thinking, named)


def read_calls(value: Any, place: str) -> tuple[dict[str, Any], ...]:
    """Tool calls (one, or a list, also as JSON text) in the form that chat templates read."""
    value = parsed(value, place)
    calls = []
    for index, call in enumerate(value if isinstance(value, list) else [value]):
        at = f"{place}[{index}]" if isinstance(value, list) else place
        function = call.get("function", call) if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise RowProblem(
                at, f"a tool call with name and arguments is expected, found {brief(call)}"
            )
        given = function.get("arguments", function.get("parameters"))
        arguments = parsed(given, f"{at}.arguments") if given not in (None, "") else {}
        if not isinstance(arguments, dict):
            raise RowProblem(f"{at}.arguments", f"an object is expected, found {brief(given)}")
        identity = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
        function = {"name": name, "arguments": arguments}
        calls.append({**identity, "type": "function", "function": function})
    return tuple(calls)


def read_tools(row: Row) -> tuple[dict[str, Any], ...]:
    """The tools of a row (a list, also as JSON text) in the form that chat templates read."""
    for column in TOOL_COLUMNS:
        value = row.get(column)
        if value is None or value == "":
            continue
        tools = parsed(value, column)
        tools = tools if isinstance(tools, list) else [tools]
        for index, tool in enumerate(tools):
            inner = tool.get("function", tool) if isinstance(tool, dict) else None
            if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
                raise RowProblem(
                    f"{column}[{index}]", f"a tool with a name is expected, found {brief(tool)}"
                )
        return tuple(
            tool if "function" in tool else {"type": "function", "function": tool} for tool in tools
        )
    return ()


def _read_entry(turn: Any, index: int, place: str) -> Iterator[Message]:
    """The messages of one entry of a list: one turn, or both turns of an exchange."""
    pair = _exchange(turn)
    if isinstance(turn, str):  # plain strings take turns, the user begins
        yield Message("assistant" if index % 2 else "user", as_text(turn, place))
    elif pair is None:
        yield read_turn(turn, place)
    else:
        yield Message("user", as_text(turn[pair[0]], f"{place}.{pair[0]}"))
        yield Message("assistant", as_text(turn[pair[1]], f"{place}.{pair[1]}"))


def _exchange(turn: Any) -> tuple[str, str] | None:
    if not isinstance(turn, dict) or any(key in turn for key in ROLE_KEYS):
        return None
    return next((pair for pair in EXCHANGES if set(pair) <= set(turn)), None)


def _role(value: Any, place: str) -> str:
    spelled = value.strip().lower().replace("-", "_") if isinstance(value, str) else ""
    if spelled not in ROLE_OF:
        known = ", ".join(ROLE_OF)
        raise RowProblem(place, f"found {brief(value)}{nearest(spelled, ROLE_OF)}, known: {known}")
    return ROLE_OF[spelled]


def _weight(holder: Row, place: str) -> float | None:
    """The loss weight that a turn or a part of one gives; None where it gives none."""
    for key in WEIGHT_KEYS:
        value = holder.get(key)
        if value is None:
            continue
        if key in ("train", "training"):
            if not isinstance(value, bool):
                raise RowProblem(f"{place}.{key}", f"true or false expected, found {brief(value)}")
            return float(value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value) or value < 0:
            expected = "a number of at least 0 is expected"
            raise RowProblem(f"{place}.{key}", f"{expected}, found {brief(value)}")
        return float(value)
    return None


def _calls_of(turn: Row, place: str) -> tuple[dict[str, Any], ...]:
    for key in ("tool_calls", "function_call"):
        if turn.get(key):
            return read_calls(turn[key], f"{place}.{key}")
    return ()


def _tool_of(call: dict[str, Any]) -> str:
    return str(call["function"]["name"])


def _content(
    said: Any, place: str, role: Role, weight: float | None
) -> tuple[str, tuple[tuple[str, float], ...], str]:
    """(text, weighted spans, thinking) of a turn's content; empty where there is none."""
    if said is None:
        return "", (), ""
    if isinstance(said, str):
        return said, (), ""
    is_parts = isinstance(said, list) and said and all(map(_is_part, said))
    if role == "tool" and not is_parts:  # what a tool returned, as it is
        return json.dumps(said, ensure_ascii=False), (), ""
    if not is_parts:
        raise RowProblem(place, f"text or a list of parts is expected, found {brief(said)}")
    default = weight if weight is not None else float(role == "assistant")
    spans: list[tuple[str, float]] = []
    thinking, weighted = "", False
    for index, part in enumerate(said):
        at = f"{place}[{index}]"
        kind = part["type"]
        if kind in THINKING_KEYS:
            thinking += as_text(part.get(kind, part.get("text")), at)
            continue
        if kind not in TEXT_PARTS:
            raise RowProblem(at, f"a part of type {brief(kind)}, only text is trained")
        if not isinstance(part.get("text"), str):
            raise RowProblem(f"{at}.text", f"text is expected, found {brief(part.get('text'))}")
        own = _weight(part, at)
        weighted = weighted or own is not None
        spans.append((part["text"], default if own is None else own))
    return "".join(text for text, _ in spans), tuple(spans) if weighted else (), thinking


def _is_part(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)
