"""An exported folder to the Hugging Face Hub: private unless asked otherwise, whole or not at all.

All files go up before the one commit that shows them, so a broken connection leaves the repository
as it was; what had arrived is known to the hub by its hash and is not sent again. The token is the
client's own: HF_TOKEN, or what `hf auth login` keeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from retone import console
from retone.errors import CheckFailed, InputError, MachineError, RetoneError
from retone.evaluation.numbers import size
from retone.models.locate import LocatedModel
from retone.run_dir import Run
from retone.workflows.card import CARD
from retone.workflows.licences import base_licence, require_passing_on
from retone.workflows.voices import real_voices

WAITS = (1.0, 4.0, 15.0)  # seconds before each further try
_BUSY = (408, 429, 500, 502, 503, 504)  # answers after which the same may go through
_QUOTA = (402, 413, 507)


@dataclass(frozen=True)
class Pushed:
    """What was sent, or of a dry run what would be.

    Attributes:
        repo: ORG/NAME on the hub.
        url: of the commit; empty for a dry run.
        public: whether everybody can read it, as the hub says; of a dry run, as was asked.
        files: name -> bytes.
        card: the model card.
        sent: false for a dry run.
    """

    repo: str
    url: str
    public: bool
    files: dict[str, int]
    card: str
    sent: bool

    def as_json(self) -> dict[str, Any]:
        """The object of `retone export --to hub --json`."""
        return asdict(self)

    def show(self) -> None:
        """Print the files, and of a dry run the card."""
        to = console.out()
        for name, amount in self.files.items():
            to.print(f"  {size(amount):>8}  {escape(name)}", soft_wrap=True)
        seen = "public: everybody can read it" if self.public else "private"
        total = f"{len(self.files)} files, {size(sum(self.files.values()))}"
        to.print(f"{self.repo} ({seen}): {total}", soft_wrap=True)
        if not self.sent:
            to.print(f"\n{escape(self.card)}", soft_wrap=True)
            to.print("nothing was sent: a dry run", style="bold")
        else:
            to.print(self.url, soft_wrap=True)


def require_pushable(
    run: Run,
    repo: str,
    kind: str,
    *,
    licence: str | None = None,
    public: bool = False,
    dry_run: bool = False,
    offline: bool = False,
    base: LocatedModel | None = None,
) -> None:
    """What can be said of a push before anything is exported.

    Args:
        run, repo, licence, public, dry_run, offline: as `push`.
        kind: adapter, merged, gguf, or lora (an adapter as GGUF).
        base: what the adapter is merged into, where that is not the run's own base.

    Raises:
        InputError: the name, the licence or the voice of a real person forbids it.
        MachineError: the network is switched off.
    """
    _require_name(repo)
    found = base_licence(run, licence, base)
    require_passing_on(run, kind, found, repo.partition("/")[2], licence, base)
    if public:
        _require_rights(run)
    if offline and not dry_run:
        raise _unreachable("the network is switched off (--offline)")


def push(
    run: Run,
    folder: Path,
    repo: str,
    *,
    gate: Mapping[str, Any],
    licence: str | None = None,
    public: bool = False,
    dry_run: bool = False,
    offline: bool = False,
    base: LocatedModel | None = None,
) -> Pushed:
    """Send an exported folder, with its card, to the hub.

    Args:
        run: what was exported.
        folder: the files, README.md among them; all of it is sent.
        repo: ORG/NAME; made where there is none.
        gate: the checks of the folder.
        licence: the base's, where the table of models does not have it.
        public: readable by everybody; else the repository has to be private.
        dry_run: only say what would be sent.
        offline: refused, unless it is a dry run.
        base: as `require_pushable`.

    Raises:
        CheckFailed: the gate did not pass.
        InputError: the licence, the voice of a real person, the name or the folder forbids it.
        MachineError: no network, no token, no permission, no room.
    """
    files = _files(folder)
    _require_gate(run, folder, repo, gate)
    kind = kind_of(folder)
    require_pushable(
        run, repo, kind, licence=licence, public=public, dry_run=dry_run, offline=offline, base=base
    )
    card = (folder / CARD).read_text(encoding="utf-8")
    sizes = {name: file.stat().st_size for name, file in files.items()}
    if dry_run:
        return Pushed(repo, "", public, sizes, card, False)
    message = f"{run.name}: {kind}, made with retone"
    url, private = _with_patience(lambda: _sent(repo, files, message, public=public), repo)
    return Pushed(repo, url, not private, sizes, card, True)


def _files(folder: Path) -> dict[str, Path]:
    """Every file by its name in the repository."""
    found = {
        file.relative_to(folder).as_posix(): file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    if CARD not in found:
        raise InputError(
            "only what was exported is pushed",
            f"{folder} has no {CARD}" if folder.is_dir() else f"{folder} is no folder",
            "retone export RUN --to hub --repo ORG/NAME   (exports and pushes)",
            "not-exported",
        )
    return found


def kind_of(folder: Path) -> str:
    """What an exported folder holds: adapter, merged, gguf, or lora (an adapter as GGUF)."""
    from gguf import GGUFReader

    for file in folder.glob("*.gguf"):
        field: Any = GGUFReader(file).get_field("general.type")
        return "lora" if field is not None and field.contents() == "adapter" else "gguf"
    return "merged" if (folder / "config.json").is_file() else "adapter"


def _require_gate(run: Run, folder: Path, repo: str, gate: Mapping[str, Any]) -> None:
    """CheckFailed unless an engine ran it, and no check failed."""
    failed = [name for name, check in gate.items() if check["ok"] is False]
    made = [name for name, check in gate.items() if check["ok"] and name != "weights"]
    if failed or not made:
        adapter = f"retone export {run.name} --to hub --repo {repo} --as adapter"
        reasons = dict.fromkeys(check["told"] for check in gate.values() if check["told"])
        raise CheckFailed(
            "what was exported did not pass its checks, so it is not pushed",
            f"{folder}: {', '.join(failed)} failed" if failed
            else f"{folder}: no check was made ({'; '.join(reasons)})",
            f"export it again; where it fails again, push the adapter: {adapter}" if failed
            else f"pip install 'retone[llamacpp]' runs GGUF files; or push the adapter: {adapter}",
            "gate-failed",
        )  # fmt: skip


def _require_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
        if repo.count("/") == 1:
            return
        found = "it takes an owner and a name"
    except HFValidationError as error:
        found = str(error).partition("\n")[0]
    raise InputError(
        "the hub takes no repository of that name", f"{repo!r}: {found}",
        "--repo ORG/NAME, letters, digits, dots, dashes and underscores", "wrong-name",
    )  # fmt: skip


def _require_rights(run: Run) -> None:
    """InputError where a real person's voice would be published without the right to it."""
    unstated = [voice["name"] for voice in real_voices(run) if not voice["right"]]
    if unstated:
        raise InputError(
            "the voice of a real person is not published without a statement of the right to it",
            f"{run.name}: {', '.join(unstated)}, whose data card states none",
            f'write it in {run.manifest} as the "right" of each of the "voices" (in the data\'s '
            "card it counts for runs made later), or leave --public out",
            "no-right",
        )  # fmt: skip


def _sent(repo: str, files: Mapping[str, Path], message: str, *, public: bool) -> tuple[str, bool]:
    """Make the repository where there is none, send what it lacks, and commit.

    Returns the commit's URL, and whether the repository is private.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, constants
    from huggingface_hub.utils import disable_progress_bars, logging  # type: ignore[attr-defined]

    constants.HF_HUB_DISABLE_TELEMETRY = True  # else it asks for a list of agents to report
    disable_progress_bars()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its warnings hold the signed addresses of uploads
    api = HfApi()
    api.create_repo(repo, private=not public, exist_ok=True)
    there = api.model_info(repo)
    private = bool(there.private)
    if not (public or private):
        raise InputError(
            "everybody could read it: the repository is there already, and public",
            repo,
            "--public if that is meant; else another name, or make it private on its page",
            "public-repository",
        )
    _require_one_form(repo, files, {file.rfilename for file in there.siblings or ()})
    additions = [CommitOperationAdd(name, file) for name, file in files.items()]
    commit = api.create_commit(repo, additions, commit_message=message)
    return str(commit.commit_url), private


def _require_one_form(repo: str, files: Mapping[str, Path], held: set[str]) -> None:
    """InputError where the repository would hold an adapter and a whole model.

    transformers then loads the adapter on its base, whatever the whole model is.
    """
    forms = {"adapter_config.json", "config.json"}
    sent, other = forms & files.keys(), forms & held - files.keys()
    if sent and other:
        names = {"adapter_config.json": "an adapter", "config.json": "a whole model"}
        raise InputError(
            "the repository holds another form, and both in one are loaded wrongly",
            f"{repo} has {names[other.pop()]}, this is {names[sent.pop()]}",
            "--repo with another name; or delete the other's files on its page",
            "two-forms",
        )


def _with_patience(send: Callable[[], tuple[str, bool]], repo: str) -> tuple[str, bool]:
    """What `send` gives, tried again where the connection broke or the hub was busy."""
    for wait in (*WAITS, None):
        try:
            return send()
        except Exception as error:
            refusal, again = _refusal(error, repo)
            if refusal is None:
                raise
            if wait is None or not again:
                raise refusal from None
            console.note(f"{refusal.found}; again in {wait:.0f} s")
            time.sleep(wait)
    raise AssertionError("not reached: the last try returns or raises")


def _refusal(error: Exception, repo: str) -> tuple[RetoneError | None, bool]:
    """Our error for the client's, None for none of its; and whether trying again may help."""
    from huggingface_hub import errors
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    cause: BaseException = error
    while isinstance(cause, RuntimeError) and cause.__cause__:  # the client wraps failed uploads
        cause = cause.__cause__
    if isinstance(cause, errors.LocalTokenNotFoundError):
        return _no_token("none was found"), False
    if isinstance(cause, errors.HfHubHTTPError):
        return _answered(cause, cause.response.status_code, repo)
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return _unreachable("the network is switched off (HF_HUB_OFFLINE)"), False
    if isinstance(cause, HTTPError | ConnectionError | TimeoutError):
        return _unreachable(f"{type(cause).__name__}: {cause}".splitlines()[0]), True
    if isinstance(cause, ValueError) and "README.md" in str(cause):
        return InputError(
            "the hub does not take the model card", " ".join(str(cause).split()),
            f"mend {CARD} in the exported folder, then: hf upload {repo} FOLDER --private",
            "wrong-card",
        ), False  # fmt: skip
    return None, False


def _answered(error: Exception, status: int, repo: str) -> tuple[RetoneError, bool]:
    """What a refusal of the hub means."""
    server = getattr(error, "server_message", None) or "it says no more"
    told = f"answer {status}: {' '.join(str(server).split())}"
    if status == 401:
        return _no_token(told), False
    if status == 403:
        return MachineError(
            f"this login may not write to {repo}",
            told,
            "take a token with the right to write (the hub's settings, Access Tokens), or a name "
            "of your own: --repo YOUR-NAME/MODEL",
            "no-permission",
        ), False
    if status in _QUOTA:
        return MachineError(
            f"the hub has no room for {repo}", told,
            "make room in the account's storage, or push the adapter, which is small", "hub-quota",
        ), False  # fmt: skip
    if status in _BUSY:
        return _unreachable(told), True
    return MachineError(
        f"the hub refused {repo}", told, "see the repository's page, then the same again",
        "hub-refused",
    ), False  # fmt: skip


def _no_token(found: str) -> MachineError:
    return MachineError(
        "the hub asks who you are",
        found,
        "hf auth login   (or HF_TOKEN in the environment), with the right to write",
        "no-token",
    )


def _unreachable(found: str) -> MachineError:
    return MachineError(
        "the hub cannot be reached",
        found,
        "with a network, the same again: what has arrived is not sent twice",
        "hub-unreachable",
    )
