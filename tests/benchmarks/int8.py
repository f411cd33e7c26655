"""Compares exports in int8 with those in float32: milliseconds per picture, and megabytes.

    python -m tests.benchmarks.int8 --variants b0 b1 --formats openvino onnx --heads none upernet

Models have random weights, with norms and layer scales like those of a trained model, and take 1 x 512 x 512
pixels. The two exports of a model take turns. `--folder` keeps the exports, so that a second call only
measures.
"""

import argparse
import contextlib
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

import heads
from heads.data.shapes.scenes import draw_scene
from tests.benchmarks.results import add_output, write_results
from van_backbones import VANBackbone
from van_backbones.exporting import export, load_export, measure_export

SUFFIXES = {"openvino": ".xml", "onnx": ".onnx", "litert": ".tflite"}
HEADS = {
    "none": lambda backbone: backbone,
    "upernet": lambda backbone: heads.UPerNet(backbone, num_classes=150),
    "retinanet": lambda backbone: heads.RetinaNet(backbone, num_classes=80),
}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--variants", nargs="+", default=("b0", "b1", "b2"))
    add("--heads", nargs="+", choices=HEADS, default=["none"])
    add("--formats", nargs="+", choices=SUFFIXES, default=["openvino"])
    add("--image-size", type=int, nargs=2, default=(512, 512))
    add("--pictures", type=int, default=16, help="for calibration")
    add("--threads", type=int, default=2)
    add("--rounds", type=int, default=9)
    add("--folder", type=pathlib.Path, help="keeps the exports; default: a temporary one")
    add_output(parser)
    arguments = parser.parse_args(argv)
    rows = []
    with contextlib.ExitStack() as stack:
        folder = arguments.folder or pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for head in arguments.heads:
            for variant in arguments.variants:
                for format in arguments.formats:
                    paths = write_exports(folder, head, variant, format, arguments)
                    rows += compare(paths, head, variant, format, arguments)
    write_results(arguments.output, "int8", rows)


def write_exports(folder, head, variant, format, arguments):
    """Returns the paths of a model's exports in float32 and int8; writes those that do not exist."""
    size = tuple(arguments.image_size)
    paths = [folder / f"{head}-{variant}-{name}{SUFFIXES[format]}" for name in ("float32", "int8")]
    if not all(path.exists() for path in paths):
        backbone = VANBackbone(variant, drop_path_rate=0.0)
        sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))
        from benchmark_exports import make_scenes, make_weights_matter

        make_weights_matter(backbone, make_scenes(2, (256, 256)))
        model = HEADS[head](backbone)
        pictures = [draw_scene(seed, size)["image"][None] for seed in range(arguments.pictures)]
        for path, calibration in zip(paths, (None, pictures), strict=True):
            export(model, path, format, size, 1, calibration=calibration)
    return paths


def compare(paths, head, variant, format, arguments):
    """Prints a line, and returns it as rows of results."""
    image = draw_scene(999, tuple(arguments.image_size))["image"][None]
    functions = [load_export(path, arguments.threads) for path in paths]
    seconds = [[] for _ in functions]
    for _ in range(arguments.rounds):
        for run, own in zip(functions, seconds, strict=True):
            run(image)  # by now the other's threads sleep
            start = time.perf_counter()
            run(image)
            own.append(time.perf_counter() - start)
    medians = [statistics.median(own) for own in seconds]
    sizes = np.array([measure_export(path) for path in paths]) / 1e6
    name = variant if head == "none" else f"{head} {variant}"
    print(
        f"{name}, {format}: float32 {1000 * medians[0]:.1f} ms, int8 {1000 * medians[1]:.1f} ms, "
        f"{medians[0] / medians[1]:.2f} times as fast; {sizes[0]:.1f} and {sizes[1]:.1f} MB",
        flush=True,
    )
    case = f"{name}, 1 x {arguments.image_size[0]} x {arguments.image_size[1]}"
    precisions = ("float32", "int8")
    rows = [(case, format, *row) for row in zip(precisions, ["seconds"] * 2, medians, strict=True)]
    return rows + [(case, format, *row) for row in zip(precisions, ["megabytes"] * 2, sizes, strict=True)]


if __name__ == "__main__":
    main()
