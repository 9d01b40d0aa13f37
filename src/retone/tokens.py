"""From rendered text to token ids and back, and where in a row a prompt ends.

Loads without torch and transformers: the tokenizer is handed in.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from retone.batch import EncodedRow
from retone.rendering import EXCERPT, RowRejected

# Rows are encoded in threads of ours (see `data.checks`), where the tokenizer's own get in the way.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_LONGEST_KEPT = 200  # characters; longer ends of prompts are questions, which seldom come again


class Tokens:
    """A text and its tokens.

    Attributes:
        text: what was tokenised.
        ids: token ids.
    """

    def __init__(self, text: str, encoding: Any) -> None:
        self.text = text
        self.ids: list[int] = encoding.ids
        # Few of the places are ever asked for; all of them would be a list of pairs a row.
        self._place = encoding.token_to_chars

    def __len__(self) -> int:
        return len(self.ids)

    def place(self, at: int) -> tuple[int, int]:
        """First character of the token `at`, and the one after its last."""
        found: tuple[int, int] = self._place(at)
        return found

    def before(self, char: int) -> int:
        """The number of tokens that begin before the character `char`."""
        return bisect_left(range(len(self.ids)), char, key=lambda at: self.place(at)[0])


class TextTokenizer:
    """A fast tokenizer for text in which the template has written the special tokens already.

    Attributes:
        end_of_text: id of the end-of-text token; empty where the tokenizer names none.
        end_ids: the tokens that generation can stop on: the end-of-text token and every token that
            the tokenizer calls special.
        added: the texts of all added tokens.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.end_of_text: frozenset[int] = frozenset({tokenizer.eos_token_id} - {None})
        self.end_ids = end_ids(tokenizer)
        self.added: tuple[str, ...] = tuple(map(str, tokenizer.added_tokens_decoder.values()))
        # The tokenizer's own core: the wrapper around it costs time in every call.
        self._backend: Any = getattr(tokenizer, "backend_tokenizer", None)
        plain = getattr(self._backend, "normalizer", None) is None
        # Added tokens that are cut out of a text before anything else looks at it.
        self._anchors = {
            token: entry.content
            for token, entry in tokenizer.added_tokens_decoder.items()
            if not entry.single_word and (plain or not entry.normalized)
        }
        self._ids_of_end = lru_cache(maxsize=1024)(self._ids)

    def tokenize(self, text: str) -> Tokens:
        """The tokens of one text; RowRejected (`not-unicode`, `slow-tokenizer`)."""
        (found,) = self.tokenize_all([text])
        if isinstance(found, RowRejected):
            raise found
        return found

    def tokenize_all(self, texts: Sequence[str]) -> list[Tokens | RowRejected]:
        """The tokens of each text, or why it has none, in one call of the tokenizer."""
        found = [_not_unicode(text) for text in texts]
        good = [text for text, rejected in zip(texts, found, strict=True) if rejected is None]
        if not good:
            return [rejected for rejected in found if rejected is not None]
        if self._backend is None:
            slow = f"{type(self._tokenizer).__name__} tells no character offsets"
            return [RowRejected("slow-tokenizer", slow)] * len(texts)
        if self._backend.truncation is not None:
            self._backend.no_truncation()
        if self._backend.padding is not None:
            self._backend.no_padding()
        # Adding special tokens would double those that the template has written.
        encoded = self._backend.encode_batch(good, add_special_tokens=False)
        made = map(Tokens, good, encoded)
        return [next(made) if rejected is None else rejected for rejected in found]

    def decode(self, ids: Sequence[int], context: Sequence[int] = ()) -> str:
        """The text of `ids`, as it is written after the tokens `context`."""
        before = self._decode(context)
        text = self._decode([*context, *ids])
        # Half a character at the start of the ids can spoil the bytes of the context.
        return text[len(before) :] if text.startswith(before) else self._decode(ids)

    def prompt_length(self, row: Tokens, end: int) -> int:
        """The number of tokens of the prompt `row.text[:end]`, which begins the row.

        The prompt's ids must be the first ids of the row. Only the end of the prompt is tokenised
        for that, from its last added token on: added tokens are cut out of a text first, from left
        to right, and what stands between two of them is tokenised on its own. So the tokens before
        an added token that ends within the prompt are the same with and without what follows.

        Raises:
            RowRejected: `tokens-merge-at-answer`, where a token spans the end of the prompt.
        """
        at = max(0, row.before(end) - 1)
        while at > 0 and not self._is_anchor(row, at):
            at -= 1
        start = row.place(at)[0] if at > 0 else 0
        ending = row.text[start:end]
        ids = self._ids_of_end(ending) if len(ending) <= _LONGEST_KEPT else self._ids(ending)
        first = at + len(ids)
        # An added token may swallow the white space after it, with the same ids: hence the offset.
        if row.ids[at:first] != ids or row.place(first - 1)[1] > end:
            where = f"{row.text[:end][-EXCERPT:]!r} and {row.text[end:][:EXCERPT]!r}"
            raise RowRejected("tokens-merge-at-answer", f"a token spans the end of {where}")
        return first

    def _is_anchor(self, row: Tokens, at: int) -> bool:
        """Whether an added token stands at `at`, written out as it is."""
        content = self._anchors.get(row.ids[at])
        return content is not None and row.text[slice(*row.place(at))].strip() == content

    def _ids(self, text: str) -> list[int]:
        return self.tokenize(text).ids

    def _decode(self, ids: Sequence[int]) -> str:
        if not ids:
            return ""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))


def end_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that generation can stop on: the end-of-text token and all tokens that are special."""
    found = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
    added = tokenizer.added_tokens_decoder.items()
    found.update(token for token, entry in added if entry.special)
    return frozenset(found - {None})


def encode_document(
    tokenizer: Any, text: str, max_length: int, *, source: str = "", row: int = 0
) -> list[EncodedRow]:
    """Plain text in rows of at most `max_length` tokens, without a chat template.

    The tokenizer adds its own first and last token, where it has any. A row begins with the last
    token of the row before it, so that every token of the text but the first is trained once; the
    last row is as short as it comes.

    Raises:
        RowRejected: `not-unicode`, or `nothing-trained` where no token has another before it.
    """
    if (rejected := _not_unicode(text)) is not None:
        raise rejected
    ids = tokenizer(text, verbose=False)["input_ids"]
    if len(ids) < 2 or max_length < 2:
        raise RowRejected("nothing-trained", f"{len(ids)} tokens in rows of {max_length}")
    pieces = [ids[start : start + max_length] for start in range(0, len(ids) - 1, max_length - 1)]
    return [
        EncodedRow(tuple(piece), (0.0, *[1.0] * (len(piece) - 1)), source, row) for piece in pieces
    ]


def _not_unicode(text: str) -> RowRejected | None:
    """Why no tokenizer can read `text`, if so: it holds half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        around = text[max(0, error.start - EXCERPT) : error.end]
        return RowRejected("not-unicode", f"half a surrogate pair in {around!r}")
    return None
