"""The wheel: one top-level package, which works in folders that have packages of the same names as its parts."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, Built

TEMPLATES = "kdpipe/report/templates/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel, which takes the dependencies from the running one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin/python"


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A folder with packages that have the names of kdpipe's parts, and fail when they are imported."""
    for name in ("stages", "models", "views", "store", "settings"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('a package of the user was imported')\n")
    return tmp_path


def run(python: Path, folder: Path, *arguments: object) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(python), "-m", "kdpipe", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_package_is_installed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"kdpipe"}
    assert "kdpipe = kdpipe.stages.cli:main" in entry_points
    kept = (path for path in (ROOT / "stages").rglob("*") if path.suffix in (".py", ".json"))
    sources = {path.relative_to(ROOT / "stages").as_posix() for path in kept}
    assert {name.removeprefix("kdpipe/stages/") for name in names if name.startswith("kdpipe/stages/")} == sources


def test_it_holds_the_templates_of_the_page(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name.removeprefix(TEMPLATES) for name in archive.namelist() if name.startswith(TEMPLATES)}
    assert held == {path.name for path in (ROOT / "pipeline" / TEMPLATES).iterdir()} >= {"page.html", "page.css"}


def test_it_runs_beside_packages_of_the_same_names(python: Path, crowded: Path, built: Built) -> None:
    where = [str(python), "-c", "import kdpipe; print(kdpipe.__file__)"]
    found = subprocess.run(where, cwd=crowded, capture_output=True, text=True, check=True, env={"PATH": ""}).stdout
    assert Path(found.strip()).is_relative_to(python.parent.parent)
    assert "cache-teacher" in run(python, crowded, "--help")
    assert "--epochs" in run(python, crowded, "train-student", "--help")
    assert "dkd" in run(python, crowded, "list", "losses")
    assert "200" in run(python, crowded, "inspect", built.store)
