"""A tokenizer.json in the words of llama.cpp, so that both give the same ids.

llama.cpp has two ways that matter here. `gpt2` is byte-level BPE: merges by rank, after a split
that it knows by name (`tokenizer.ggml.pre`). `llama` is SentencePiece's BPE: spaces are written as
"▁", pairs are merged by the score of the token they make, and what is left falls back to bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import TokenType
from tokenizers import Tokenizer

from retone.errors import InputError
from retone.models.gguf_quants import gguf_table
from retone.rendering import RowRejected, render_chat

SPACE = "▁"
ANSWER = "x7e"  # stands for an answer while it is looked for what follows one
# The template begins with a space, which becomes the "▁" that transformers puts before a text. The
# line break belongs to the tag before it: the template still begins at the start of a line.
_LEADING_SPACE = "{{ ' ' }}{% if true %}{% endif %}\n"
# llama.cpp hands today's date to templates that ask for this name; transformers hands them nothing.
_NO_DATE = "{% set date_string = nothing %}\n"
# Special tokens after which llama.cpp keeps white space, if it takes it away after the others: it
# does so where general.name holds phi-3 or phi3, and has no other switch for it.
_PHI3_KEEPS = frozenset({"<unk>", "<s>", "<|endoftext|>"})
_PHI3_NAME = re.compile(r"phi-?3", re.IGNORECASE)


@dataclass(frozen=True)
class Vocabulary:
    """What a file says about its tokenizer.

    Attributes:
        model: gpt2 or llama.
        pre: how gpt2 splits a text; `default` for llama.
        tokens: texts by id, as many as there are embeddings.
        types: gguf.TokenType by id.
        scores: by id; a pair is merged the sooner the higher. Only for llama.
        merges: pairs with a space between. Only for gpt2.
        ids: bos, eos, eot, eom, unk and pad, where there is one. Generation stops on eos, eot, eom.
        flags: add_bos, add_eos and add_space_prefix.
        template: the chat template, or empty.
        strips: white space after special tokens is taken away.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    ids: dict[str, int]
    flags: dict[str, bool]
    template: str
    strips: bool

    def name(self, name: str) -> str:
        """A name for the model that llama.cpp does not read as something about its tokens."""
        if self.strips:
            return name if _PHI3_NAME.search(name) else f"{name} (phi-3)"
        return _PHI3_NAME.sub("phi 3", name)

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        """Write all of it, but for the name."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for key, token in self.ids.items():
            getattr(writer, f"add_{key}_token_id")(token)
        writer.add_add_bos_token(self.flags["add_bos"])
        writer.add_add_eos_token(self.flags["add_eos"])
        writer.add_add_space_prefix(self.flags["add_space_prefix"])
        if self.template:
            writer.add_chat_template(self.template)


def read_vocabulary(folder: Path, embeddings: int, template: str) -> Vocabulary:
    """The vocabulary of a model folder.

    Args:
        folder: with tokenizer.json and tokenizer_config.json.
        embeddings: how many tokens the model has; those without a name are marked as unused.
        template: chat template that prompts are made with, or empty.

    Raises InputError for a tokenizer that llama.cpp would read otherwise.
    """
    file = folder / "tokenizer.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing narrower
        raise _refused(file, [f"cannot be read: {error}"]) from error
    special = _special_tokens(folder)
    byte_level = not told["model"].get("byte_fallback")
    problems = [*_problems(told, embeddings, tokenizer), *_added_problems(told["added_tokens"])]
    if told["model"]["type"] == "BPE":
        problems += _splits_problems(told) if byte_level else _merge_problems(told)
    if problems:
        raise _refused(file, problems)
    chat = _Chat(tokenizer, told, special, template)
    ids = _ids(folder, tokenizer, special, chat)
    if "eos" not in ids:  # llama.cpp would take a number of its own for it
        raise _refused(file, ["no token ends a text (eos_token in tokenizer_config.json)"])
    tokens = [tokenizer.id_to_token(at) or f"[PAD{at}]" for at in range(embeddings)]
    return Vocabulary(
        "gpt2" if byte_level else "llama",
        _pre_tokenizer(told) or "" if byte_level else "default",
        tokens,
        _types(tokens, told, special, byte_level),
        [] if byte_level else _scores(tokens, told),
        [" ".join(pair) for pair in _pairs(told)] if byte_level else [],
        ids,
        {
            "add_bos": chat.begins_with("bos_token"),
            "add_eos": chat.ends_with_eos(),
            "add_space_prefix": not byte_level and bool(_prefix(told, bool(template))),
        },
        chat.template(),
        any(token["rstrip"] for token in told["added_tokens"]),
    )


def _refused(file: Path, problems: list[str]) -> InputError:
    return InputError(
        "llama.cpp would split texts otherwise than this tokenizer",
        f"{file}: {'; '.join(problems)}",
        "--llama-cpp CHECKOUT   (a folder of github.com/ggml-org/llama.cpp, whose converter knows "
        "more tokenizers)",
        "gguf-tokenizer",
    )


# ----------------------------------------------------------------------------- what is not covered


def _problems(told: dict[str, Any], embeddings: int, tokenizer: Tokenizer) -> Iterator[str]:
    model = told["model"]
    if model["type"] != "BPE":
        yield f"a model of type {model['type']} (BPE is known)"
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            yield f"BPE with {name}"
    beyond = [token for token, at in tokenizer.get_vocab().items() if at >= embeddings]
    if beyond:
        yield f"{len(beyond)} tokens ({beyond[0]!r} ...) beyond the {embeddings} embeddings"


def _added_problems(added: list[dict[str, Any]]) -> Iterator[str]:
    left = [token["content"] for token in added if token["lstrip"] or token["single_word"]]
    if left:
        yield f"special tokens that take white space before them or stand alone: {', '.join(left)}"
    right = {token["content"] for token in added if token["rstrip"]}
    others = {token["content"] for token in added} - right
    if right and (others != _PHI3_KEEPS or "</s>" not in right):
        yield (
            f"special tokens that take white space after them ({', '.join(sorted(right)[:3])} ...) "
            f"beside some that do not ({', '.join(sorted(others)[:3])} ...)"
        )


def _splits_problems(told: dict[str, Any]) -> Iterator[str]:
    if (told["normalizer"] or {"type": "NFC"}) != {"type": "NFC"}:
        yield f"texts are normalised by {told['normalizer']['type']}"
    if _pre_tokenizer(told) is None:
        splits = _splits(told["pre_tokenizer"])
        ignores = told["model"].get("ignore_merges", False)
        yield f"texts are split by {splits}, ignore_merges = {str(ignores).lower()}"


def _merge_problems(told: dict[str, Any]) -> Iterator[str]:
    """What SentencePiece's merging by scores could not follow."""
    vocabulary = told["model"]["vocab"]
    missing = [at for at in range(256) if f"<0x{at:02X}>" not in vocabulary]
    if missing:
        yield f"bytes to fall back to are missing (<0x{missing[0]:02X}> ...)"
    last: dict[str, int] = {}
    for rank, (left, right) in enumerate(_pairs(told)):
        # A score belongs to a token: all pairs that make it have to come one after the other.
        if last.get(left + right, rank - 1) != rank - 1:
            yield f"merges of {left + right!r} at ranks {last[left + right]} and {rank}"
            break
        last[left + right] = rank
    if _prefix(told, False) is None:
        yield f"texts are prepared by {told['normalizer']} and {told['pre_tokenizer']}"


# --------------------------------------------------------------------------------- splits and pairs


def _pairs(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The merges; older files write a pair as one text."""
    for pair in told["model"]["merges"]:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        yield left, right


def _parts(step: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, one after the other."""
    if step is None:
        return []
    return list(step[inside]) if step["type"] == "Sequence" else [step]


def _splits(step: dict[str, Any] | None) -> list[str]:
    """How byte-level BPE splits a text, as tables/gguf.toml writes it; else what each step is."""
    splits = []
    for part in _parts(step, "pretokenizers"):
        kept = (part.get("behavior"), part.get("invert")) in (
            ("Isolated", False),
            ("Removed", True),
        )
        if part["type"] == "Split" and kept and "Regex" in part["pattern"]:
            splits.append(part["pattern"]["Regex"])
        elif part["type"] == "Digits" and part["individual_digits"]:
            splits.append("digits")
        elif part["type"] == "ByteLevel" and not part["add_prefix_space"]:
            splits += ["gpt-2"] if part["use_regex"] else []
        else:
            splits.append(json.dumps(part))
    return splits


def _pre_tokenizer(told: dict[str, Any]) -> str | None:
    """llama.cpp's name for how texts are split; None where it has none."""
    splits = _splits(told["pre_tokenizer"])
    ignores = told["model"].get("ignore_merges", False)
    for row in gguf_table("pre_tokenizer"):
        if (row["splits"], row.get("ignore_merges", False)) == (splits, ignores):
            return str(row["name"])
    return None


def _prefix(told: dict[str, Any], chat: bool) -> bool | None:
    """Whether "▁" is put before a text and after each special token; None for something else.

    `Metaspace` of scheme `first` puts it before a whole text only, which llama.cpp cannot: for a
    chat the template brings it along (`_Chat.template`), plain texts get it everywhere.
    """
    steps = [
        (part["type"], part.get("prepend") or part.get("pattern"), part.get("content"))
        for part in _parts(told["normalizer"], "normalizers")
    ]
    splits = _parts(told["pre_tokenizer"], "pretokenizers")
    replaced = ("Replace", {"String": " "}, SPACE)
    if steps == [("Prepend", SPACE, None), replaced] and not splits:
        return True
    # Gemma splits at spaces, after all of them were replaced.
    idle = [part for part in splits if part["type"] == "Split" and part["pattern"]["String"] == " "]
    if steps == [replaced] and splits == idle:
        return False
    meta = splits[0] if len(splits) == 1 and splits[0]["type"] == "Metaspace" else None
    if steps or meta is None or meta["replacement"] != SPACE or meta.get("split", True):
        return None
    return {"always": True, "never": False, "first": not chat}[meta["prepend_scheme"]]


# --------------------------------------------------------------------------- tokens, types, scores


def _special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token and so on of tokenizer_config.json."""
    file = folder / "tokenizer_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    named = {key: told.get(f"{key}_token") for key in ("bos", "eos", "unk", "pad")}
    return {
        f"{key}_token": token["content"] if isinstance(token, dict) else token
        for key, token in named.items()
        if token
    }


def _types(
    tokens: list[str], told: dict[str, Any], special: dict[str, str], byte_level: bool
) -> list[int]:
    added = {token["content"]: token["special"] for token in told["added_tokens"]}
    named = set(special.values())
    unknown = told["model"].get("unk_token") or special.get("unk_token")
    known = told["model"]["vocab"]
    types = []
    for token in tokens:
        kind = TokenType.NORMAL
        if token not in known and token not in added:
            kind = TokenType.UNUSED  # a name that was made up
        elif not byte_level and token == unknown:
            kind = TokenType.UNKNOWN
        elif token in named or added.get(token):
            kind = TokenType.CONTROL
        elif token in added:
            kind = TokenType.USER_DEFINED
        elif not byte_level and re.fullmatch("<0x[0-9A-F]{2}>", token):
            kind = TokenType.BYTE
        types.append(int(kind))
    return types


def _scores(tokens: list[str], told: dict[str, Any]) -> list[float]:
    """By id: the earlier a token is made by merging, the higher."""
    pairs = [left + right for left, right in _pairs(told)]
    first = {made: rank for rank, made in reversed(list(enumerate(pairs)))}
    return [-float(first.get(token, len(pairs))) for token in tokens]


def _ids(
    folder: Path, tokenizer: Tokenizer, special: dict[str, str], chat: _Chat
) -> dict[str, int]:
    """Ids of special tokens; llama.cpp has three that end an answer, and knows others by name."""
    found = {
        key: tokenizer.token_to_id(special[f"{key}_token"])
        for key in ("bos", "unk", "pad")
        if f"{key}_token" in special
    }
    ends = [tokenizer.token_to_id(special["eos_token"])] if "eos_token" in special else []
    ends += [] if chat.stop is None else [chat.stop]
    file = folder / "generation_config.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    more = told.get("eos_token_id") or []
    ends += more if isinstance(more, list) else [more]
    distinct = [each for each in dict.fromkeys(ends) if each is not None]
    found |= dict(zip(("eos", "eot", "eom"), distinct, strict=False))
    return {key: each for key, each in found.items() if each is not None}


# ------------------------------------------------------------------------------------ chat prompts


class _Chat:
    """What prompts begin with and answers end with; without a template, what plain texts do.

    Attributes:
        stop: id of the token that ends an answer of the template; None without one.
    """

    def __init__(
        self, tokenizer: Tokenizer, told: dict[str, Any], special: dict[str, str], template: str
    ) -> None:
        self._tokenizer, self._told, self._special = tokenizer, told, special
        self._template = template
        self._prompt, self.stop = self._rendered() if template else ("", None)

    def _rendered(self) -> tuple[str, int | None]:
        """The text of a prompt, and the first added token behind an answer."""
        user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": ANSWER}
        try:
            prompt = render_chat(
                self._template, [user], add_generation_prompt=True, **self._special
            )
            turn = render_chat(
                self._template, [user, answer], add_generation_prompt=False, **self._special
            )
        except RowRejected as rejected:
            raise InputError(
                "the chat template cannot be rendered", rejected.detail,
                "export with the template that the model was trained with", "template-refused",
            ) from rejected  # fmt: skip
        added = {token["id"] for token in self._told["added_tokens"]}
        behind = self._tokenizer.encode(turn.rpartition(ANSWER)[2], add_special_tokens=False).ids
        return prompt, next((each for each in behind if each in added), None)

    def begins_with(self, name: str) -> bool:
        """Whether a text gets this token at its beginning.

        llama.cpp puts it before whatever it is asked, chats included. So a template decides: where
        prompts do not begin with it, it would be one token too many.
        """
        token = self._special.get(name, "")
        given = self._tokenizer.encode("a").tokens
        return (
            bool(token)
            and given[0] == token
            and self._prompt.startswith(token if self._template else "")
        )

    def ends_with_eos(self) -> bool:
        """Whether a plain text gets the end token; a chat prompt never does."""
        token = self._special.get("eos_token", "")
        return not self._template and self._tokenizer.encode("a").tokens[-1] == token

    def template(self) -> str:
        """The template, with the space that transformers puts before plain text, and no date."""
        splits = _parts(self._told["pre_tokenizer"], "pretokenizers")
        first = any(part.get("prepend_scheme") == "first" for part in splits)
        names = tuple(token["content"] for token in self._told["added_tokens"])
        bare = self._template and not self._prompt.startswith((*names, " ", SPACE))
        before = _LEADING_SPACE if first and bare else ""
        return before + _NO_DATE * ("date_string" in self._template) + self._template
