"""The wheel that users get: built, installed into an empty environment, used outside the tree."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import retone
import tiny

ROOT = Path(__file__).resolve().parents[2]
DATA = ("recipes", "datasets", "tables")


def run(*command: str | Path, cwd: Path) -> str:
    """stdout of a command that has to succeed."""
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=variables, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, sdist); the wheel is built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a new environment with the wheel, which borrows the dependencies."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False)
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    python = programs / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", built[0], cwd=home)
    packages = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=home)
    # A plain path: the .pth files in that folder, the editable install's among them, are not read.
    borrowed = "\n".join(site.getsitepackages()) + "\n"
    Path(packages.strip(), "borrowed.pth").write_text(borrowed)
    return programs


def test_everything_is_inside(built: tuple[Path, Path]) -> None:
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    package = ROOT / "src" / "retone"
    needed = [package / "py.typed"]
    needed += [file for name in DATA for file in (package / name).rglob("*") if file.is_file()]
    needed += list(package.rglob("*.py"))
    assert {str(file.relative_to(ROOT / "src")) for file in needed} <= inside
    assert not [name for name in inside if not name.startswith(("retone/", "retone-"))]
    assert [name for name in inside if name.endswith("licenses/LICENSE")]
    with tarfile.open(sdist) as tarball:
        files = {name.partition("/")[2] for name in tarball.getnames()}
    assert {"README.md", "LICENSE", "CHANGELOG.md", "docs/decisions.md", "tests/tiny.py"} <= files


def test_used_outside_the_tree(installed: Path, tmp_path: Path) -> None:
    code = "import retone; print(retone.__file__); print(retone.__version__)"
    where, version = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert Path(where).is_relative_to(installed.parent)
    assert version == retone.__version__

    program = installed / "retone"
    assert "retone run yoda" in run(program, "--help", cwd=tmp_path)
    run(program, "new", "x.toml", cwd=tmp_path)
    base = tiny.folder(tmp_path / "base")
    # The bundled rows, recipe and model table are read from the wheel.
    told = json.loads(run(program, "inspect", "x.toml", "--model", base, "--json", cwd=tmp_path))
    source = told["sources"][0]
    assert source["path"] == "bundled:yoda/train.jsonl"
    assert source["used"] > 400
