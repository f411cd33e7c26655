"""README.md and docs/ are true: their code runs, their commands and links exist, their lists are complete.

A comment before a block tells what it needs:

    <!-- test: slow -->       it trains or exports for a long time
    <!-- test: downloads -->  releases; files of random weights stand for them here
"""

import ast
import itertools
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tomllib
import typing

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import heads
import van_backbones
from heads import DenseModel
from van_backbones import VANBackbone, VANClassifier
from van_backbones.checkpoints import save_state_dict

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class Block(typing.NamedTuple):
    """A block of code on a page.

    Attributes:
        place: page and line.
        language: the word after the fence, "" for commands and listings.
        notes: the words of the comment before it.
        text: the code.
    """

    place: str
    language: str
    notes: str
    text: str


def read_blocks(page):
    """Returns the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(
        r"(?:^<!-- test: (slow|downloads) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
    )
    blocks = []
    for match in pattern.finditer(text):
        line = text.count("\n", 0, match.start(3)) + 1
        place = f"{page.relative_to(ROOT).as_posix()}:{line}"
        blocks.append(Block(place, match[2], match[1] or "", match[3]))
    return blocks


BLOCKS = [block for page in PAGES for block in read_blocks(page)]


def mark(block):
    marks = [pytest.mark.slow] if "slow" in block.notes else []
    return pytest.param(block, marks=marks, id=block.place)


@pytest.fixture
def stand_ins(monkeypatch, tmp_path_factory):
    """Replaces downloads by files of random weights."""

    def download(release):
        path = tmp_path_factory.mktemp(release.name) / "weights.safetensors"
        if release.head is None:
            model = VANClassifier(release.variant)
        else:
            model = getattr(heads, release.head)(VANBackbone(release.variant), num_classes=150)
        save_state_dict(model, path)
        return path

    monkeypatch.setattr("van_backbones.checkpoints.loading.download", download)


@pytest.mark.parametrize("block", [mark(block) for block in BLOCKS if block.language == "python"])
def test_code_runs_as_it_is_printed(block, tmp_path, monkeypatch, request):
    if "downloads" in block.notes:
        request.getfixturevalue("stand_ins")
    monkeypatch.chdir(tmp_path)
    exec(compile(block.text, block.place, "exec"), {"__name__": "__main__"})


def test_blocks_are_found_and_their_languages_known():
    assert len(BLOCKS) > 20
    assert {block.language for block in BLOCKS} <= {"python", ""}
    notes = [block for block in BLOCKS if block.notes]
    assert len(notes) == sum(len(re.findall(r"^<!-- test:", page.read_text("utf-8"), re.M)) for page in PAGES)


def test_the_first_block_has_twelve_lines():
    first = next(block for block in BLOCKS if block.language == "python")
    assert len([line for line in first.text.splitlines() if line]) == 12


def read_commands(block):
    """Yields each command of a block as words, without comments."""
    text = block.text.replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip().startswith(("python ", "make ", "pip ", "van-backbones ")):
            yield shlex.split(line, comments=True)


COMMANDS = [
    pytest.param(words, id=f"{block.place} {' '.join(words[:3])}")
    for block in BLOCKS
    if not block.language
    for words in read_commands(block)
]


def list_texts(path):
    """Returns the strings in a script, its options and subcommands among them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value != ""}


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_exist(words):
    if words[0] == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = makefile.partition(".PHONY:")[2].splitlines()[0].split()
        for word in words[1:]:
            variable, is_setting, value = word.partition("=")
            assert variable in targets or (is_setting and f"$({variable})" in makefile), word
            assert variable != "TASK" or value in list_texts(ROOT / "examples/demo.py")
    elif words[0] == "pip":
        extras = PYPROJECT["project"]["optional-dependencies"]
        for word in words:
            names = ",".join(re.findall(r"\[(.+)\]", word)).split(",")
            assert {name for name in names if name} <= extras.keys()
    elif words[0] == "van-backbones":
        check_python_command(find_script(words[1:]))
    else:
        check_python_command(words[1:])


def find_script(words):
    """Returns what a command of `van-backbones` runs, as words that follow `python`."""
    sys.path.insert(0, str(ROOT / "examples"))
    from command_line import COMMANDS

    command, *rest = words
    if command == "checkpoints":
        return ["-m", "van_backbones.checkpoints", *rest]
    script = COMMANDS[command]
    script, rest = (script[rest[0]], rest[1:]) if isinstance(script, dict) else (script, rest)
    return [f"examples/{script}.py", *rest]


def check_python_command(words):
    if words[0] == "-m":
        path = ROOT / words[1].replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
        if words[1] in ("build", "venv", "pytest", "pip"):
            return
        words = words[1:]
    else:
        path = ROOT / words[0]
    assert path.is_file(), path
    known = list_texts(path) | {"--output"}
    if path.parent.name == "examples":
        help_text = subprocess.check_output([sys.executable, str(path), "--help"], text=True)
        known = set(re.findall(r"--[\w-]+", help_text))
    for word in words[1:]:
        assert not word.startswith("--") or word in known, f"{path.name} has no {word}"
    if path.parent.name == "checkpoints":
        assert words[1] in known


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http:", "https:")):
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_paths_that_are_named_exist():
    pattern = re.compile(r"`((?:heads|van_backbones|tests|examples|docs)/[\w./-]+)`")
    for page in PAGES:
        if page.name != "CHANGELOG.md":
            for path in pattern.findall(page.read_text(encoding="utf-8")):
                assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_modules_that_are_named_exist():
    pattern = re.compile(r"`((?:heads|van_backbones)(?:\.\w+)+)[`(]")
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue
        for name in pattern.findall(page.read_text(encoding="utf-8")):
            value, rest = sys.modules[name.split(".")[0]], name.split(".")[1:]
            for depth, part in enumerate(rest, 1):
                if not hasattr(value, part):
                    __import__(".".join([name.split(".")[0], *rest[:depth]]))
                value = getattr(value, part)


def test_the_readme_is_short_and_in_order():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 200
    assert re.findall("^## (.+)$", text, re.MULTILINE) == [
        "Install",
        "Twelve lines",
        "Models",
        "Weights",
        "Conventions",
        "Train",
        "Heads on any Keras backbone",
        "Deploy",
        "Speed",
        "File map",
        "Links",
    ]


def list_entries(folder):
    """Returns the modules and folders of a folder with code."""
    found = {
        path.name for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    return found - {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("package", ["heads", "van_backbones"])
def test_the_file_map_is_whole(package):
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## File map")[2]
    listing = text.partition(f"{package}/  ")[2].partition("\nheads/  ")[0].partition("\nexamples/")[0]
    assert set(re.findall(r"[a-z_0-9]+\.py", listing)) == {
        name for name in list_entries(ROOT / package) if name.endswith(".py")
    }
    for name in list_entries(ROOT / package):
        assert name in listing, f"the README's file map lacks {package}/{name}"


def test_the_house_in_contributing_is_whole():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in itertools.chain(ROOT.glob("heads/**/*.py"), ROOT.glob("van_backbones/**/*.py")):
        if path.name not in ("__init__.py", "__main__.py"):
            assert re.search(rf"\b{path.stem}\b", text), f"CONTRIBUTING.md lacks {path.relative_to(ROOT)}"


def test_heads_are_in_the_tables():
    names = [name for name in heads.__all__ if issubclass(type(getattr(heads, name)), type)]
    names = [name for name in names if issubclass(getattr(heads, name), DenseModel)]
    for page in ("README.md", "docs/fidelity.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        assert all(f"`{name}`" in text for name in names if name != "DenseModel"), page


def test_the_reference_has_all_doors():
    pages = "\n".join(page.read_text("utf-8") for page in (ROOT / "docs/reference").glob("*.md"))
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in ROOT.glob("docs/**/*.md"):
        assert page.relative_to(ROOT / "docs").as_posix() in navigation
    for path in ROOT.glob("heads/*/__init__.py"):
        package = f"heads.{path.parent.name}"
        modules = [f"{package}.{name.removesuffix('.py')}" for name in list_entries(path.parent)]
        has_names = "__all__" in path.read_text(encoding="utf-8")
        needed = [package] if has_names else modules
        assert package == "heads.coco" or all(f"::: {name}\n" in f"{pages}\n" for name in needed), package


def test_a_folder_of_the_same_name_shadows_ours(tmp_path):
    # What the README says under "Install".
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "__init__.py").touch()
    (tmp_path / "train.py").write_text("from heads import UPerNet\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(
        [sys.executable, "train.py"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert "ImportError: cannot import name 'UPerNet' from 'heads'" in run.stderr


# Each number is written in one place.


def test_one_version():
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {van_backbones.__version__}\n" in citation
    assert f"## {van_backbones.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_lower_bounds_are_those_of_pyproject():
    lines = (ROOT / "tests/lower_bounds.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    for text in PYPROJECT["project"]["dependencies"]:
        requirement = Requirement(text)
        lowest = next(part.version for part in requirement.specifier if part.operator == ">=")
        assert Version(pinned.pop(requirement.name)) == Version(lowest), requirement.name
    assert not pinned


def test_results_are_rows_of_one_form():
    from benchmarks.results import read_results

    files = list((ROOT / "tests/benchmarks/results").glob("*.csv"))
    assert files
    for path in files:
        rows = read_results(path)
        assert rows
        assert all(row["value"] > 0 for row in rows)


def test_results_are_written(tmp_path):
    from benchmarks.results import name_file, read_results, write_results

    write_results(None, "data", [])
    write_results(tmp_path, "data", [("480 x 640", "crops", "", "pictures per second", 166.0)])
    write_results(tmp_path, "data", [("480 x 640", "boxes", "", "pictures per second", 188)])
    rows = read_results(tmp_path / name_file())
    assert [(row["row"], row["value"]) for row in rows] == [("crops", 166.0), ("boxes", 188.0)]
    with pytest.raises(ValueError, match=r"a row must hold .* Received: \('crops',\)"):
        write_results(tmp_path, "data", [("crops",)])
    other = tmp_path / "other.csv"
    other.write_text("name,value\n")
    with pytest.raises(ValueError, match=r"columns must be .* Received: \['name', 'value'\]"):
        write_results(other, "data", [])
