"""The gate of a teacher's rows: each reason to leave one out fires, and a sound row passes."""

from __future__ import annotations

from typing import Any

import pytest

from retone.conversation import Message
from retone.teacher.answers import Draft
from retone.teacher.gate import faults_of
from retone.teacher.persona import load_persona

PERSONA = load_persona("lighthouse")
SOUND = "Tie the boat twice and go to bed. If it is still there at breakfast, you slept well."
GERMAN = (
    "Ich habe den Leuchtturm vierzig Jahre lang bewacht, und noch immer weckt mich der Nebel, "
    "obwohl ich ihm laengst nichts mehr schuldig bin."
)


def faults(answer: Draft, least: float = 0.6) -> list[str]:
    asked = Message("user", "The storm keeps me awake. What shall I do?")
    told = faults_of(PERSONA, [asked, Message("assistant", answer.text)], [answer], least)
    return [fault.partition(":")[0] for fault in told]


def test_a_sound_row_passes() -> None:
    assert faults(Draft(SOUND)) == []
    assert faults(Draft(SOUND, points=0.6, judged=True)) == []
    assert faults(Draft(SOUND, points=None, judged=True), least=0) == []


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        ({"finished": False}, "cut"),
        ({"points": 0.59, "judged": True}, "rubric"),
        ({"points": None, "judged": True}, "rubric"),
        ({"text": " ".join(["calmly"] * 90)}, "long"),
        ({"text": PERSONA.examples[0]}, "copied"),
        ({"text": f"As an AI language model, I would say: {SOUND}"}, "teacher-residue"),
        ({"text": f"{SOUND}<|im_end|>"}, "special-token"),
    ],
)
def test_each_reason_fires(answer: dict[str, Any], fault: str) -> None:
    assert fault in faults(Draft(**{"text": SOUND} | answer))


def test_an_answer_in_another_language_is_left_out() -> None:
    pytest.importorskip("lingua", reason="the extra `languages` is not installed")
    assert "language" in faults(Draft(GERMAN))
