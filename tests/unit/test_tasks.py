"""The task is found from the training rows."""

from __future__ import annotations

from typing import Any

import pytest

from retone.conversation import Conversation, Message
from retone.data.tasks import found_task


def row(prompt: str, answer: str, **extra: Any) -> Conversation:
    return Conversation((Message("user", prompt), Message("assistant", answer)), extra=extra)


REWRITE = [row("The cat sleeps.", "Sleeps, the cat does."), row("Go home now.", "Home, go now.")]
CHAT = [row("How are you?", "Fine. Yourself?"), row("Tell me a joke.", "Knock knock.")]
FORM = [row("Two nights for Bo.", '{"name": "Bo"}'), row("Hi.", ' {"name": null}')]


@pytest.mark.parametrize(
    ("rows", "task"),
    [
        (REWRITE, "rewrite"),
        (CHAT, "chat"),
        (FORM, "structured"),
        ([row("When?", "noon", answer_keywords=["noon"])], "qa"),
        ([row("When?", "noon", answers=["noon", "12"])], "qa"),
        ([*FORM, row("Hi.", "{broken")], "chat"),
        ([], "chat"),
    ],
)
def test_found_task(rows: list[Conversation], task: str) -> None:
    found, because = found_task(rows)
    assert found == task
    assert because
