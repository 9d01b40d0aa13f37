"""Splits that depend on the rows' content and the seed, never on their order."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from retone.conversation import Conversation


def content_key(conversation: Conversation, seed: int = 0) -> str:
    """A hash of what is said; equal for equal conversations wherever they stand."""
    turns = [(message.role, message.content) for message in conversation.messages]
    return hashlib.sha256(json.dumps([seed, turns]).encode()).hexdigest()


def split_by_content(
    rows: Sequence[Conversation], fraction: float, seed: int
) -> tuple[list[Conversation], list[Conversation]]:
    """(train, test): the `fraction` of rows with the smallest content hashes is held out.

    Equal conversations fall on the same side. At least one row is held out when there are two
    distinct ones and the fraction is not 0.
    """
    if fraction == 0:
        return list(rows), []
    ranked = sorted({content_key(row, seed) for row in rows})
    held = set(ranked[: max(1, round(fraction * len(ranked)))]) if len(ranked) > 1 else set()
    train = [row for row in rows if content_key(row, seed) not in held]
    return train, [row for row in rows if content_key(row, seed) in held]
