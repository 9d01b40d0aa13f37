"""The text that a chat template makes of messages, exactly as transformers renders it.

Loads without torch and transformers: the renderer of transformers is imported when it is first
used, by whoever has a tokenizer at hand.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

EXCERPT = 40  # characters of rendered text quoted in a message


class RowRejected(Exception):
    """A conversation that a template cannot turn into a faithful training row.

    Attributes:
        reason: a kebab-case slug for the ledger, for example `tokens-merge-at-answer`.
        detail: what was found, with an excerpt.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Renderer:
    """Renders one template text with the special tokens of one tokenizer."""

    def __init__(self, tokenizer: Any, text: str) -> None:
        self.text = text
        self._special_tokens: dict[str, str] = dict(tokenizer.special_tokens_map)

    def __call__(
        self,
        chat: Sequence[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool,
    ) -> str:
        """The text of `chat`; RowRejected (`template-error`) where the template refuses."""
        return render_chat(
            self.text,
            chat,
            tools=list(tools) or None,  # templates tell "no tools" by None
            add_generation_prompt=add_generation_prompt,
            **self._special_tokens,
        )


def render_chat(template_text: str, chat: Sequence[dict[str, Any]], **variables: Any) -> str:
    """The text that `template_text` makes of `chat`, with `variables` (tools, bos_token ...).

    The compiled template is called directly: the tokenizer's `apply_chat_template` gives the same
    text and spends twice the time on copying its arguments, which are plain JSON values here.

    Raises:
        RowRejected: `template-error`, with what the template raised.
    """
    from transformers.utils.chat_template_utils import _compile_jinja_template

    if not chat:
        raise RowRejected("template-error", "there are no messages to render")
    given = {"tools": None, "documents": None, **variables}
    try:
        template = _compile_jinja_template(template_text)
        return str(template.render(messages=[_both_names(each) for each in chat], **given))
    # Templates raise on purpose (raise_exception) and by accident (a missing field).
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise RowRejected("template-error", f"the template raised: {error}") from error


def _both_names(message: dict[str, Any]) -> dict[str, Any]:
    """The message with its reasoning under both names that templates read, as transformers does."""
    reasoning = message.get("reasoning_content")
    return message if reasoning is None else {"thinking": reasoning, **message}


def prints_date(template_text: str) -> bool:
    """Whether the template can print today's date."""
    return re.search(r"\bstrftime_now\s*\(", template_text) is not None


def pin_date(template_text: str, date: datetime.date) -> str:
    """The template with `strftime_now` answering for midnight of `date`, whoever renders it.

    The date stands in the text because renderers accept plain data only, so that a function handed
    to them never reaches the template; and because an exported template has to print it as well.
    """
    moment = datetime.datetime.combine(date, datetime.time())
    values = {f"%{letter}": moment.strftime(f"%{letter}") for letter in "aAbBcdHIjmMpSUwWxXyYZ"}
    values |= {"%-d": f"{date.day}", "%-m": f"{date.month}", "%e": f"{date.day:2}"}
    values |= {"%F": date.isoformat(), "%T": "00:00:00", "%%": "%"}
    steps = "".join(f" | replace({code!r}, {value!r})" for code, value in values.items())
    # The line break belongs to the tag before it: the template still begins at the start of a line.
    macro = f"{{% macro strftime_now(format) %}}{{{{ format{steps} }}}}{{% endmacro %}}\n"
    return macro + template_text


def difference(expected: str, found: str) -> str:
    """Where two texts part, with an excerpt of both."""
    pairs = enumerate(zip(expected, found, strict=False))
    at = next((at for at, (a, b) in pairs if a != b), min(len(expected), len(found)))
    window = slice(max(0, at - 12), at + EXCERPT)
    return f"expected {expected[window]!r}, found {found[window]!r} (character {at})"
