"""What `make dist` packs: the packages, the scripts of examples/ and `van-backbones`, which work anywhere."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
WITHOUT_NETWORK = ["--quiet", "--no-deps", "--no-index"]


def test_all_packages_are_listed():
    packages = {
        ".".join(path.relative_to(ROOT).parent.parts)
        for package in ("heads", "van_backbones")
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == packages | {"van_backbones_examples"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Returns a wheel of this checkout, built in a copy, because building leaves folders behind."""
    pytest.importorskip("setuptools", minversion="77", reason="builds the wheel without network")
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns("__pycache__", ".*", "tests", "runs", "build", "dist", "*.egg-info")
    shutil.copytree(ROOT, folder / "copy", ignore=ignored)
    build = ["wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "copy")]
    subprocess.run([*PIP, *build, *WITHOUT_NETWORK], check=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_packages_and_scripts(wheel):
    with zipfile.ZipFile(wheel) as archive:
        files = set(archive.namelist())
        entry_points = next(name for name in files if name.endswith("entry_points.txt"))
        assert b"van-backbones = van_backbones_examples.command_line:main" in archive.read(entry_points)
    for package in ("heads", "van_backbones"):
        for path in (ROOT / package).rglob("*"):
            if path.suffix in (".py", ".typed", ".txt"):
                assert path.relative_to(ROOT).as_posix() in files
    for path in (ROOT / "examples").glob("*.py"):
        assert f"van_backbones_examples/{path.name}" in files
    tops = {name.split("/")[0] for name in files}
    assert {name for name in tops if not name.endswith(".dist-info")} == {
        "heads",
        "van_backbones",
        "van_backbones_examples",
    }


@pytest.mark.slow
def test_the_command_works_outside_of_a_clone(wheel, tmp_path):
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    scripts, packages = (
        pathlib.Path(sysconfig.get_path(kind, "venv", {"base": str(venv), "platbase": str(venv)}))
        for kind in ("scripts", "purelib")
    )
    # The dependencies come from this Python's folder. Its own .pth files, of editable installs, are not run.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [*PIP, "--python", str(scripts / "python"), "install", *WITHOUT_NETWORK, str(wheel)], check=True
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["TF_CPP_MIN_LOG_LEVEL"] = "2"

    def call(*words):
        command = [str(scripts / "van-backbones"), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    assert "commands:" in call("--help").stdout
    assert call("train").returncode == 2
    assert "b2_imagenet" in call("checkpoints", "list").stdout
    done = call("demo", "--steps", "2", "--evaluate-every", "2", "--channels", "8")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("van-backbones train segmentation --output runs/demo --crop-size")
    assert (tmp_path / "runs" / "demo" / "predictions.png").is_file()
    model = str(tmp_path / "runs" / "demo" / "best.keras")
    done = call("predict", "segmentation", model, str(tmp_path / "runs" / "demo" / "predictions.png"))
    assert done.returncode == 0, done.stderr
    assert "1 of 1 pictures" in done.stdout
    probe = "import heads, van_backbones; print(heads.__file__, van_backbones.__file__)"
    done = subprocess.run(
        [str(scripts / "python"), "-c", probe], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert all(str(packages) in path for path in done.stdout.split())
