"""Who speaks: a description in TOML, checked, and the prompts that follow from it."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, ValidationError, model_validator

from retone.config import Section
from retone.data.languages import language_names
from retone.errors import InputError, nearest
from retone.recipe_file import explain

Line = Annotated[str, Field(min_length=1)]
_STARTER = "retone new my_persona.toml --from persona:lighthouse   (writes one to start from)"


class Persona(Section):
    """A character; the whole of PERSONA.toml."""

    name: Line
    """What it is called."""
    who: Line
    """Who it is, in a few sentences."""
    real_person: bool
    """Whether anybody of that name lives or lived. True needs `rights`."""
    rights: str = ""
    """Why a real person's voice may be used: their consent, or the licence of the texts."""
    audience: str = ""
    """Who it talks to."""
    do: list[Line] = Field(min_length=1)
    """Rules of the voice."""
    avoid: list[Line] = Field(default=[])
    """What it never does."""
    examples: list[Line] = Field(min_length=2)
    """Lines in the voice. They are shown to the teacher, and answers are compared with them."""
    topics: list[Line] = Field(min_length=1)
    """What it is asked about."""
    languages: list[Line] = Field(default=["English"], min_length=1)
    """Languages it answers in."""
    refusals: str = ""
    """What it declines, and how it says so."""
    most_words: int = Field(default=120, ge=5, le=2000)
    """Longest answer in words."""
    families: dict[str, str] = Field(default={})
    """Further families of questions: name -> what such a question is like."""
    without: list[str] = Field(default=[])
    """Families of tables/questions.toml to leave out."""

    @model_validator(mode="after")
    def _may_be_used(self) -> Self:
        if self.real_person and not self.rights.strip():
            raise ValueError(
                "real_person is true, so `rights` has to say why the voice of a real person may "
                "be used (their consent, or the licence of the texts)"
            )
        return self

    @model_validator(mode="after")
    def _known_languages(self) -> Self:
        try:
            known = language_names()
        except ImportError:  # then answers are not told by their language either
            return self
        wrong = [name for name in self.languages if name.title() not in known]
        if wrong:
            raise ValueError(
                f"languages: {wrong[0]}{nearest(wrong[0], known)} is no language that answers are "
                f"told by; one of {', '.join(known)}"
            )
        return self

    @property
    def system(self) -> str:
        """What a model is told that is to answer as this persona, the teacher included."""
        parts = [
            f"You are {self.name}. {self.who}",
            f"You are talking to {self.audience}." if self.audience else "",
            _listed("How you speak:", self.do),
            _listed("What you never do:", self.avoid),
            f"What you decline: {self.refusals}" if self.refusals else "",
            f"Answer in {' or '.join(self.languages)}, in at most {self.most_words} words, "
            "as yourself and with nothing but what you say.",
        ]
        return "\n\n".join(part for part in parts if part)

    @property
    def short_system(self) -> str:
        """A system prompt for the model that is tuned, which has the voice in its weights."""
        return f"You are {self.name}. {self.who}"

    @property
    def shown(self) -> str:
        """The example lines as the teacher reads them."""
        return _listed("Lines you have said:", self.examples)


def bundled_personas() -> dict[str, Path]:
    """Name -> file of the personas that come with the package."""
    folder = Path(str(resources.files("retone.teacher") / "personas"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_persona(name: str) -> Persona:
    """A persona by the name of a bundled one, or from a file.

    Raises InputError that names every wrong field at once.
    """
    bundled = bundled_personas()
    path = bundled.get(name) or Path(name)
    if not path.is_file():
        raise InputError(
            f'there is no persona "{name}"',
            f"no such file{nearest(name, bundled)}; bundled: {', '.join(bundled)}",
            _STARTER,
            "unknown-persona",
        )
    try:
        return Persona.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            "the persona is not valid TOML", f"{path}: {error}", "mend that line", "broken-persona"
        ) from error
    except ValidationError as error:
        raise InputError(
            "the persona has fields that cannot be used",
            f"{path}: " + "; ".join(explain(item, Persona) for item in error.errors()),
            f"mend them; {_STARTER}",
            "wrong-persona",
        ) from error


def _listed(title: str, lines: list[str]) -> str:
    return "\n".join([title, *(f"- {line}" for line in lines)]) if lines else ""
