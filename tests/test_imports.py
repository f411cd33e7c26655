"""The directions of imports: see "Which way things point" in CONTRIBUTING.md."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOORS = ("heads.data", "heads.metrics", "heads.drawing", "heads.training")
# From modules that build on nothing to those that build on all before them.
ROOMS = ("heads.ops", "heads.layers", "heads")
# Bases of several heads; and a model may be another one with one part replaced.
BASES = {"heads.semantic_model", "heads.one_stage_detector"}
MODELS_ON_MODELS = {("heads.mask_rcnn", "heads.faster_rcnn")}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(tree, name, is_package):
    """Returns the full names of all modules that a module imports, also inside of functions."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = name.split(".")[: len(name.split(".")) - node.level + is_package] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            # `from heads import fpn` names a module, `from heads import FPN` a class in it.
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def is_model(tree):
    """Returns whether the module defines a head: a class whose base is one for heads, or a head itself."""
    bases = [base for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases]
    return any(
        ast.unparse(base) in ("DenseModel", "OneStageDetector", "SemanticModel", "FasterRCNN")
        for base in bases
    )


def read_modules(package):
    """Returns module name -> (its syntax tree, the modules that it imports)."""
    modules = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        name = module_name(path)
        modules[name] = tree, imported_modules(tree, name, path.name == "__init__.py")
    return modules


HEADS, BACKBONES = read_modules("heads"), read_modules("van_backbones")


def importers(modules, *targets):
    """Returns the names of the modules that import one of the targets, or something below it."""
    return {
        name
        for name, (_, imports) in modules.items()
        if any(found == target or found.startswith(f"{target}.") for found in imports for target in targets)
    }


def is_door(name):
    return name.startswith(DOORS)


def test_the_modules_are_found():
    assert {"heads", "heads.layers.fpn", "heads.data.semantic_folder", "heads.drawing"} <= HEADS.keys()
    assert {"van_backbones", "van_backbones.backbone"} <= BACKBONES.keys()
    assert "heads.ops.resizing" in HEADS["heads.layers.fpn"][1]


def test_relative_imports_are_understood():
    tree = ast.parse("from . import fpn\nfrom ..van_backbones import layers\nfrom .data import semantic")
    assert imported_modules(tree, "heads.upernet", False) >= {
        "heads.fpn",
        "heads.data.semantic",
        "van_backbones.layers",
    }


def find_room(name):
    """Returns the index in ROOMS of a module of heads; None for doors and what they share."""
    if name.startswith((*DOORS, "heads.coco")):
        return None
    return next(place for place, room in enumerate(ROOMS) if name == room or name.startswith(f"{room}."))


def test_models_are_built_on_layers_and_layers_on_ops():
    for name, (_, imports) in HEADS.items():
        for other in imports & HEADS.keys() - {"heads"}:
            rooms = find_room(name), find_room(other)
            assert None in rooms or rooms[0] >= rooms[1], f"{name} imports {other}"


@pytest.mark.parametrize("modules", [HEADS, BACKBONES], ids=["heads", "van_backbones"])
def test_no_imports_go_in_a_circle(modules):
    # A package's door imports what is inside: what is inside must not go through the door again.
    settled, left = set(), {name: imports & modules.keys() - {name} for name, (_, imports) in modules.items()}
    while left:
        done = {name for name, imports in left.items() if imports <= settled}
        assert done, f"in a circle, or behind one: {sorted(left)}"
        settled |= done
        left = {name: imports for name, imports in left.items() if name not in done}


def test_the_packages_do_not_import_each_other():
    assert importers(HEADS, "van_backbones") == set()
    assert importers(BACKBONES, "heads") == set()


def test_doors_are_for_examples_only():
    assert {name for name in importers(HEADS, *DOORS) if not is_door(name)} == set()


def test_doors_do_not_import_each_other():
    for door in DOORS:
        others = [other for other in DOORS if other != door]
        assert {name for name in importers(HEADS, *others) if name.startswith(door)} == set()


def test_tensorflow_is_in_few_rooms():
    found = importers(HEADS, "tensorflow")
    assert found
    # Outside of the data, only for what concerns TensorFlow itself: its host and devices, its exports, and
    # its slow operations.
    assert {name for name in found if not name.startswith("heads.data")} == {"heads.ops.backends"}
    assert importers(BACKBONES, "tensorflow") == {
        "van_backbones.cpu_kernels",
        "van_backbones.devices",
        "van_backbones.exporting.export",
        "van_backbones.gradients",
    }


def test_no_model_imports_another():
    models = {name for name, (tree, _) in HEADS.items() if is_model(tree)} - BASES
    assert {"heads.semantic_fpn", "heads.upernet"} <= models
    pairs = {(name, other) for other in models for name in importers(HEADS, other) - {"heads"}}
    assert pairs <= MODELS_ON_MODELS


def test_nothing_imports_the_tests_or_examples():
    for modules in (HEADS, BACKBONES):
        assert importers(modules, "tests", "examples", "contracts", "golden_reference") == set()


def test_modules_of_unix_alone_are_imported_where_they_are_used():
    unix = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"}
    for name, (tree, _) in (HEADS | BACKBONES | read_modules("examples")).items():
        # On Windows, everything else must start: see `heads.training.callbacks`.
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert not imported_modules(top, name, False) & unix, name


HEAVY = """
ai_edge_litert faster_coco_eval h5py huggingface_hub keras_cv keras_hub matplotlib onnx onnxruntime
openvino pandas PIL pycocotools safetensors scipy tensorboard tensorflow_datasets tqdm transformers
""".split()


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_imports_are_light(backend):
    pytest.importorskip(backend)
    # Keras itself imports what it finds of these and of the other backends: only what we add counts.
    program = (
        "import sys, keras\n"
        "before = set(sys.modules)\n"
        "import heads, van_backbones\n"
        "print('tensorflow' in set(sys.modules) - before)\n"
        "van_backbones.VANBackbone('b0', widths=(4, 4, 4, 4), depths=(1, 1, 1, 1))\n"
        f"print(sorted((set(sys.modules) - before) & {{*{HEAVY!r}, *{DOORS!r}}}))\n"
    )
    environment = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "2"}
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines()[-2:] == ["False", "[]"]
