"""docs/notebooks: each notebook is made from its script, names what exists, and runs from top to bottom."""

import ast
import base64
import importlib
import io
import os
import pathlib
import re
import sys

import nbformat
import pytest
from PIL import Image

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "docs"))

import make_notebooks

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = make_notebooks.find_scripts()
# Printed text -> the least number that follows it: with less, the training has learnt nothing.
SCORES = {
    "segmenter": (r"^mean +([\d.]+)", 15.0),  # IoU, percent
    "detector": (r"^AP50 +([\d.]+)", 20.0),
    "backbone": (r"^P5: 95 % within (\d+) pixels", 33.0),  # more than one position of the level
}
each_script = pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)


def test_each_notebook_has_a_script():
    assert {script.stem for script in SCRIPTS} == set(SCORES)
    assert {path.stem for path in make_notebooks.FOLDER.glob("*.ipynb")} == set(SCORES)


@each_script
def test_notebooks_are_what_their_scripts_make(script):
    path = script.with_suffix(".ipynb")
    is_in_step = path.read_text(encoding="utf-8") == make_notebooks.convert(script)
    assert is_in_step, f"{path.name} is not what {script.name} makes: run `make notebooks`"


def test_notebooks_are_made(tmp_path, monkeypatch, capsys):
    script = tmp_path / "small.py"
    script.write_text("# %% [markdown]\n# # Title\n#\n# Text.\n\n# %%\nx = 1\n\n# %%\nx\n", encoding="utf-8")
    monkeypatch.setattr(make_notebooks, "FOLDER", tmp_path)
    make_notebooks.main([])
    assert capsys.readouterr().out == f"{tmp_path / 'small.ipynb'}\n"
    text = (tmp_path / "small.ipynb").read_text(encoding="utf-8")
    make_notebooks.main([])
    assert (tmp_path / "small.ipynb").read_text(encoding="utf-8") == text
    notebook = nbformat.reads(text, 4)
    nbformat.validate(notebook)
    assert [(cell.cell_type, cell.source) for cell in notebook.cells] == [
        ("markdown", "# Title\n\nText."),
        ("code", "x = 1"),
        ("code", "x"),
    ]
    assert not any(cell.get("outputs") for cell in notebook.cells)


@each_script
def test_notebooks_use_what_is_public(script):
    tree = ast.parse(script.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert node.module.split(".")[0] in ("PIL", "heads", "van_backbones")
            for name in node.names:
                assert hasattr(module, name.name), f"{script.name}: {node.module} has no {name.name}"


@each_script
def test_notebooks_name_pages_that_exist(script):
    names = re.findall(r"`((?:docs/)?[\w/]+\.(?:md|ipynb))`", script.read_text(encoding="utf-8"))
    assert names
    for name in names:
        path = ROOT / name if name.startswith("docs/") else script.parent / name
        assert path.is_file(), f"{script.name} names {name}"


def run_notebook(path, folder):
    """Runs a notebook in a kernel of this Python; returns it with its outputs, or raises a cell's error."""
    from jupyter_client.kernelspec import KernelSpecManager
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, kernel_name="python3", timeout=1200, resources=place)
    manager = client.create_kernel_manager()
    # Without folders of kernels, only that of this Python exists.
    manager.kernel_spec_manager = KernelSpecManager(kernel_dirs=[])
    client.execute()
    assert not manager.has_kernel
    return notebook


def ends_with_picture(source):
    """Returns whether a cell shows a picture, the value of its last line."""
    last = ast.parse(source).body[-1]
    is_call = isinstance(last, ast.Expr) and isinstance(last.value, ast.Call)
    return is_call and ast.unparse(last.value.func) == "Image.fromarray"


def read_outputs(cell):
    """Returns the printed text and the pictures of a cell."""
    outputs = cell.get("outputs", [])
    text = "".join(each.text for each in outputs if each.output_type == "stream")
    encoded = [each.data["image/png"] for each in outputs if "image/png" in each.get("data", {})]
    return text, [Image.open(io.BytesIO(base64.b64decode(each))).convert("RGB") for each in encoded]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # from Jupyter's parts
@each_script
def test_notebooks_run(script, tmp_path, monkeypatch):
    paths = (str(ROOT), os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = run_notebook(script.with_suffix(".ipynb"), tmp_path)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    printed = ""
    for cell in cells:
        text, pictures = read_outputs(cell)
        printed += text
        assert len(pictures) == ends_with_picture(cell.source)
        for picture in pictures:
            assert min(picture.size) > 100
            assert all(low < high for low, high in picture.getextrema())
    pattern, least = SCORES[script.stem]
    assert float(re.search(pattern, printed, re.MULTILINE)[1]) > least
