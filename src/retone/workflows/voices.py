"""Real persons whose voice the data of a run has: kept in its manifest, as the data's cards say.

`retone synthesize` writes a card beside its rows. It is read once, when a run is made: data is
moved and deleted afterwards, and what was trained on it still speaks in that voice.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from retone.config import BUNDLED, HUB, STDIN, Recipe
from retone.run_dir import Run, is_run, read_json
from retone.workflows.markdown import unescaped

Voice = dict[str, str]  # name, and right: what the card states, or nothing
_ENDING = ".card.md"
# In the card of a dataset, and in that of an exported model, which escapes names for Markdown.
_TOLD = re.compile(
    r"^\*\*This (?:is|model speaks in) the voice of a real person, (.+?)\.\*\* "
    r"The right to it: ?(.*)$",
    re.MULTILINE,
)
_NOT_STATED = "not stated."


def real_voices(run: Run) -> list[Voice]:
    """Real persons whose voice a run has, by its manifest."""
    found: list[Voice] = read_json(run.manifest)["voices"]
    return found


def voices_of_data(recipe: Recipe) -> list[Voice]:
    """Those that the cards beside a recipe's data files name, or inside its folders."""
    paths = [source.path for split in ("train", "test") for source in recipe.data.sources(split)]
    cards = (card for path in paths for card in _cards(path))
    return united(_read(card) for card in dict.fromkeys(cards))


def voices_of_adapter(folder: Path) -> list[Voice]:
    """Those of the run that an adapter lies in, or that the model card beside it names."""
    if is_run(folder.parent):
        return real_voices(Run(folder.parent))
    found = _read(folder / "README.md")
    return [{key: unescaped(value) for key, value in voice.items()} for voice in found]


def united(lists: Iterable[Iterable[Voice]]) -> list[Voice]:
    """Every voice once, in the order of the lists."""
    found: list[Voice] = []
    for voices in lists:
        found += [voice for voice in voices if voice not in found]
    return found


def _cards(path: str) -> list[Path]:
    """Where the cards of a source are, or would be."""
    if path.startswith((BUNDLED, HUB)) or path == STDIN:
        return []
    place = Path(path).expanduser()
    files = [place, *map(Path, glob.glob(str(place), recursive=True))]
    beside = [file.parent / f"{name}{_ENDING}" for file in files for name in _stems(file.name)]
    folders = [file for file in files if file.is_dir()]
    return [*beside, *(card for folder in folders for card in folder.rglob(f"*{_ENDING}"))]


def _stems(name: str) -> list[str]:
    """x.v2.jsonl.gz, x.v2.jsonl, x.v2, x: data is packed, and files beside it have more words."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts), 0, -1)]


def _read(card: Path) -> list[Voice]:
    if not os.path.isfile(card):  # False for a name that is too long, where pathlib raises
        return []
    told = _TOLD.findall(card.read_text(encoding="utf-8", errors="replace"))
    return [
        {"name": name, "right": "" if right.strip() == _NOT_STATED else right.strip()}
        for name, right in told
    ]
