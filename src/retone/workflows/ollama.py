"""A run for Ollama: a Modelfile whose Go template renders what the run's own template renders.

Ollama reads no Jinja. What it is given instead is made of six pieces of text, which are found by
rendering conversations, never by a model's name; further conversations are then rendered both ways,
and a template that is more than these pieces is refused. The form of the file and the variables of
the template: github.com/ollama/ollama, docs/modelfile.md and docs/template.md.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from retone import console
from retone.chat_template import ChatTemplate
from retone.conversation import Message, Role
from retone.errors import InputError, MachineError
from retone.models.loading import CONTEXT
from retone.rendering import RowRejected
from retone.run_dir import write_whole
from retone.workflows.load import Opened

MODELFILE = "Modelfile"
MOST_CONTEXT = 8192  # tokens that Ollama sets memory aside for
_NAME = re.compile(r"[a-z0-9][\w.-]*(/[a-z0-9][\w.-]*){0,2}(:[\w.-]+)?", re.ASCII | re.IGNORECASE)
_ADDS_BOS = "tokenizer.ggml.add_bos_token"
# Contents that stand for any other, each found again in what is rendered.
_MARKS = ("Marks the 1st.", "Marks the 2nd.", "Marks the 3rd.")
_SYSTEM_MARK = "Marks the system."
_ODD = 'Say "{{ .System }}" \\n {% raw %}\n\n```{"a": [1]}``` \N{GRINNING FACE} \u4f60\u597d?'
CHECKED: tuple[tuple[str, tuple[str, ...]], ...] = (  # a system message or none, then the turns
    ("", ("Hello!",)),
    ("Be brief.", ("Hello!",)),
    ("", ("Hello!", "Good day.", "How are you?")),
    ("Be brief.", ("Hello!", "Good day.", "How are you?")),
    ("Be\n\nbrief.", ("One?", "1.", "Two?", "2,\nI think.", "Three?", "3.", "Four?")),
    (_ODD, (_ODD, _ODD, _ODD)),
)


@dataclass(frozen=True)
class Pieces:
    """A prompt's text around its contents, for user and assistant in turn, a user's turn last.

    Attributes:
        opening: before the first turn, where no system message is given; holds the default one.
        system: before the system message.
        after_system: from the system message to the first turn.
        to_assistant: from a user's to an assistant's content.
        to_user: from an assistant's to a user's content.
        closing: after the last turn, up to where the answer begins.
    """

    opening: str
    system: str
    after_system: str
    to_assistant: str
    to_user: str
    closing: str

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt; what the Go template gives for the same messages."""
        given = messages[0].content if messages[0].role == "system" else ""
        text = self.system + given + self.after_system if given else self.opening
        turns = messages[1:] if messages[0].role == "system" else messages
        for at, turn in enumerate(turns):
            before = self.to_user if turn.role == "user" else self.to_assistant
            text += (before if at else "") + turn.content
        return text + self.closing

    def go_template(self) -> str:
        """The same as a Go template over Ollama's `.System` and `.Messages`.

        White space around a content stays, also where the model's own template takes it away: the
        templates of Ollama have no function for that.
        """
        opening, system, after_system, to_assistant, to_user, closing = map(_go, astuple(self))
        return "\n".join(
            (
                f"{{{{- if .System }}}}{system}{{{{ .System }}}}{after_system}",
                f"{{{{- else }}}}{opening}{{{{ end }}}}",
                "{{- $later := false }}",
                "{{- range .Messages }}",
                f'{{{{- if eq .Role "user" }}}}{{{{ if $later }}}}{to_user}{{{{ end }}}}'
                "{{ .Content }}{{ $later = true }}",
                f'{{{{- else if eq .Role "assistant" }}}}{to_assistant}{{{{ .Content }}}}',
                "{{- end }}",
                f"{{{{- end }}}}{closing}",
            )
        )


def find_pieces(template: ChatTemplate) -> Pieces:
    """The pieces of a run's template; InputError for a template that is more than that."""
    first = _MARKS[0]
    try:
        opening, closing = _around(template, "", (first,), first)
        found = _around(template, "", _MARKS, *_MARKS)
        with_system = _around(template, _SYSTEM_MARK, (first,), _SYSTEM_MARK, first)
        pieces = Pieces(opening, with_system[0], with_system[1], found[1], found[2], closing)
        for system, turns in CHECKED:
            messages = conversation(system, turns)
            wanted = template.render(messages, add_generation_prompt=True)
            if pieces.render(messages) != wanted:
                raise _refused(template, f"{len(turns)} turns{' and a system' * bool(system)}")
    except RowRejected as rejected:
        raise _refused(template, f"{rejected.reason}: {rejected.detail}") from rejected
    return pieces


def conversation(system: str, turns: Sequence[str]) -> list[Message]:
    """Messages by user and assistant in turn, after the system's where there is one."""
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = [Message(roles[at % 2], turn) for at, turn in enumerate(turns)]
    return [Message("system", system), *messages] if system else messages


def _around(template: ChatTemplate, system: str, turns: Sequence[str], *marks: str) -> list[str]:
    """The pieces of the rendered prompt between the contents."""
    text = template.render(conversation(system, turns), add_generation_prompt=True)
    if any(text.count(mark) != 1 for mark in marks):
        raise _refused(template, "a content stands there changed, twice or not at all")
    pieces = []
    for mark in marks:
        before, _, text = text.partition(mark)
        pieces.append(before)
    return [*pieces, text]


def _refused(template: ChatTemplate, found: str) -> InputError:
    return InputError(
        "the chat template cannot be written as an Ollama template",
        f"{template.name}: {found}, rendered, is not made of fixed pieces",
        "serve it with retone serve, or the GGUF with llama.cpp: llama-server --jinja -m FILE "
        "(it reads the template inside)",
        "no-ollama-template",
    )


def _go(text: str) -> str:
    """An action that prints the text: a JSON string is one of Go's, and needs no trimming."""
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""


def require_modelfile(opened: Opened, name: str) -> None:
    """What can be said of a Modelfile before there is a GGUF file.

    Raises:
        InputError: Ollama takes no model of that name, cannot render the template, or cannot hold
            the system prompt.
    """
    check_name(name)
    _require_quotable(opened)
    find_pieces(opened.template)


def check_name(name: str) -> None:
    """InputError for a name that Ollama takes no model by."""
    if not _NAME.fullmatch(name):
        raise InputError(
            "Ollama takes no model of that name",
            repr(name),
            "retone runs --rename OLD NEW, where NEW is letters, digits, dots and dashes",
            "wrong-name",
        )


def _require_quotable(opened: Opened) -> None:
    if '"""' in (opened.resolved.recipe.data.system or ""):
        raise InputError(
            "a Modelfile cannot hold the system prompt",
            f'{opened.run.name}: data.system has three quotation marks in a row (""")',
            "write them another way in the recipe, and run it again",
            "no-ollama-system",
        )


def write_modelfile(gguf: Path, opened: Opened) -> Path:
    """Write `Modelfile` beside a GGUF file of the run's tuned model.

    With it Ollama answers as `retone ask` does: the same template, system prompt, end tokens and
    longest answer, the likeliest token always, and no penalty for repeating.

    Raises:
        InputError: Ollama cannot render the template, or hold the system prompt.
    """
    template, recipe = opened.template, opened.resolved.recipe
    _require_quotable(opened)
    pieces = _for_tokenizer(find_pieces(template), gguf, opened)
    stops = [str(opened.tokenizer.convert_ids_to_tokens(one)) for one in sorted(template.stop_ids)]
    lines = [
        f"# {opened.run.name}: ollama create NAME -f {MODELFILE}",
        f"FROM ./{gguf.name}",
        f'TEMPLATE """{pieces.go_template()}"""',
    ]
    if recipe.data.system:
        lines.append(f'SYSTEM """{recipe.data.system}"""')
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    lines += [
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {min(opened.base.context or CONTEXT, MOST_CONTEXT)}",
        f"PARAMETER num_predict {recipe.evaluate.max_new_tokens or 256}",
    ]
    path = gguf.with_name(MODELFILE)
    write_whole(path, "\n".join(lines) + "\n")
    return path


def _for_tokenizer(pieces: Pieces, gguf: Path, opened: Opened) -> Pieces:
    """The pieces without the token that begins a text, where the GGUF has Ollama add it.

    Raises InputError where it would add one that the run was not trained with.
    """
    bos = opened.tokenizer.bos_token or ""
    begins = bool(bos) and pieces.opening.startswith(bos) and pieces.system.startswith(bos)
    adds = _adds_bos(gguf)
    if adds and not begins:
        raise InputError(
            "Ollama would put a token before every prompt that the run was not trained with",
            f"{gguf.name}: {_ADDS_BOS} is not false, and the chat template begins without it",
            "leave --llama-cpp out: retone itself writes what the template begins with; otherwise "
            f"retone serve {opened.run.name}",
            "other-prompt",
        )
    if not adds:
        return pieces
    opening, system = pieces.opening.removeprefix(bos), pieces.system.removeprefix(bos)
    _, _, *others = astuple(pieces)
    return Pieces(opening, system, *others)


def _adds_bos(gguf: Path) -> bool:
    """What the file says of the first token; a file that says nothing has it added."""
    from gguf import GGUFReader

    field: Any = GGUFReader(gguf).get_field(_ADDS_BOS)
    return True if field is None else bool(field.contents())


def create(modelfile: Path, name: str) -> bool:
    """Have Ollama make the model `name`.

    False, and a note of the command, where Ollama is missing or has a model of that name, which may
    be somebody's own.

    Raises:
        InputError: Ollama takes no such name.
        MachineError: Ollama failed.
    """
    check_name(name)
    command = ["ollama", "create", name, "-f", str(modelfile)]
    if shutil.which("ollama") is None:
        console.note(f"Ollama is not installed; where it is: {shlex.join(command)}")
        return False
    if subprocess.run(["ollama", "show", name], capture_output=True, check=False).returncode == 0:
        console.note(f"Ollama has a model {name} already; to replace it: {shlex.join(command)}")
        return False
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        told = (done.stderr or done.stdout).strip().splitlines()
        raise MachineError(
            "Ollama could not make the model",
            f"exit code {done.returncode}: {told[-1] if told else 'it said nothing'}",
            f"see that ollama serve is running, then: {shlex.join(command)}",
            "ollama",
        )
    return True
