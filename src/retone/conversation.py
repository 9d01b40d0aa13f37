"""What data is: messages, conversations, preferences. Loads without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[str, ...] = get_args(Role)


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: who speaks.
        content: the text, exactly as it is to be rendered.
        loss_weight: weight of this turn in the loss (0 masks it). None leaves it to the role:
            1 for an assistant turn, 0 for every other.
        spans: the content in pieces (text, weight) where parts of one turn weigh differently;
            joined they are the content. Empty: the whole turn has one weight.
        tool_calls: calls in the form that chat templates read,
            {"type": "function", "function": {"name": ..., "arguments": {...}}}.
        thinking: reasoning before the answer, for templates that have a place for it.
        name: the tool that answers, in a turn of role `tool`.
    """

    role: Role
    content: str
    loss_weight: float | None = None
    spans: tuple[tuple[str, float], ...] = ()
    tool_calls: tuple[dict[str, Any], ...] = ()
    thinking: str = ""
    name: str = ""

    @property
    def weight(self) -> float:
        """The loss weight that holds for this turn."""
        if self.loss_weight is not None:
            return self.loss_weight
        return 1.0 if self.role == "assistant" else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The form that chat templates read; what is empty is left out."""
        found: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            found["tool_calls"] = [dict(call) for call in self.tool_calls]
        if self.thinking:
            found["reasoning_content"] = self.thinking
        if self.name:
            found["name"] = self.name
        return found


@dataclass(frozen=True)
class Conversation:
    """Messages in order, and where they came from.

    Attributes:
        messages: the turns.
        source: file or dataset the row was read from.
        row: 1-based row number in that source.
        extra: further fields of the row, kept for scoring (topic, keywords ...).
        tools: descriptions of the tools that the assistant may call (JSON schema, as chat
            templates read them).
    """

    messages: tuple[Message, ...]
    source: str = ""
    row: int = 0
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last assistant turn (all of it where there is none)."""
        if self.messages and self.messages[-1].role == "assistant":
            return self.messages[:-1]
        return self.messages

    @property
    def answer(self) -> str:
        """Content of the last message when it is an assistant turn, else an empty string."""
        last = self.messages[-1] if self.messages else None
        return last.content if last is not None and last.role == "assistant" else ""

    @property
    def question(self) -> str:
        """Content of the last user turn."""
        users = [message.content for message in self.messages if message.role == "user"]
        return users[-1] if users else ""

    @property
    def where(self) -> str:
        """`file, row n`, for messages."""
        return f"{self.source}, row {self.row}"


@dataclass(frozen=True)
class Preference:
    """One prompt with a better and a worse answer, or one answer with a verdict.

    Attributes:
        prompt: the turns before the answer.
        chosen: the better answer; None where a row says only what is bad.
        rejected: the worse answer; None where a row says only what is good.
        source, row, extra, tools: as in `Conversation`.
    """

    prompt: tuple[Message, ...]
    chosen: Message | None
    rejected: Message | None
    source: str = ""
    row: int = 0
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Document:
    """A piece of plain text, for training without a chat template.

    Attributes:
        text: as it stands in the source.
        source, row, extra: as in `Conversation`.
    """

    text: str
    source: str = ""
    row: int = 0
    extra: dict[str, Any] = field(default_factory=dict, compare=False)
