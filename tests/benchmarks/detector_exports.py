"""Times every detector, deployed in Keras, and its exports, with many and with few candidates for detections.

    python -m tests.benchmarks.detector_exports [--heads RetinaNet] [--classes 80] [--candidates many] \
        [--size 320 320] [--folder EXPORTS] [--output FILE.csv]

VAN-b0 with random weights, one picture, float32, from pixels to detections. The class scores are moved so
that half of all pairs of a box and a class pass the score threshold, or 300, as for a trained model. Each
head is measured in a process of its own, in which Keras and the runtimes take turns; medians are compared.
"""

import argparse
import os
import pathlib
import statistics
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import Worker, WorkerError, time_calls

HEADS = ("RetinaNet", "GFL", "ATSS", "FasterRCNN", "MaskRCNN", "CascadeMaskRCNN")
FORMATS = ("saved_model", "onnx", "openvino", "litert")
CANDIDATES = {"many": 0.5, "few": 300}  # a share of all pairs, or a number


class ExportedDetector:
    """A detector in a process of its own."""

    def __init__(self, head, num_classes, candidates, size, num_threads, formats, folder):
        import keras
        import numpy as np
        import tensorflow as tf

        import heads
        from van_backbones import VANBackbone, deploy
        from van_backbones.exporting import export, load_export
        from van_backbones.exporting.export import FORMATS as SUFFIXES

        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(num_threads)
        keras.utils.set_random_seed(0)
        model = getattr(heads, head)(VANBackbone("b0", drop_path_rate=0.0), num_classes)
        self.images = np.random.default_rng(0).integers(0, 256, (1, *size, 3)).astype("uint8")
        move_scores(model, self.images.astype("float32"), CANDIDATES[candidates])
        deployed = deploy(model)
        self.calls = {"Keras": lambda images: deployed.predict_on_batch(images.astype("float32"))}
        folder = pathlib.Path(folder, f"{head}-{num_classes}-{candidates}-{size[0]}-{size[1]}")
        for format in formats:
            path = folder / f"{format}{SUFFIXES[format][0]}"
            if not path.exists():
                export(model, path, format, image_size=size, batch_size=1)
            self.calls[format] = load_export(path, num_threads)
        self.answers = {name: call(self.images) for name, call in self.calls.items()}

    def describe(self):
        """Returns the number of detections, and format -> largest difference of its scores from Keras's."""
        import numpy as np

        scores = {name: answer["scores"] for name, answer in self.answers.items()}
        return int((scores["Keras"] > 0).sum()), {
            name: float(np.abs(values - scores["Keras"]).max()) for name, values in scores.items()
        }

    def take_turns(self, num_rounds):
        """Returns the median milliseconds of a call, by name."""
        seconds = {name: [] for name in self.calls}
        for _ in range(num_rounds):
            for name, call in self.calls.items():
                seconds[name].append(time_calls(lambda call=call: call(self.images)).seconds)
        return {name: round(1000 * statistics.median(values), 1) for name, values in seconds.items()}


def move_scores(model, images, count):
    """Moves the class scores so that `count` pairs of a box and a class, or that share, pass."""
    import numpy as np

    outputs = [getattr(model, "class_output", None)]
    if outputs[0] is None:
        outputs = [head.classifier for head in getattr(model, "box_heads", None) or [model.box_head]]
    is_softmax = not hasattr(model, "class_output")
    logits = np.asarray(model(images, training=False)["class_logits"])
    scale = 1.5 / logits.std()
    for output in outputs:
        output.kernel.assign(scale * output.kernel)
        output.bias.assign(0.0 * output.bias)
    logits = np.asarray(model(images, training=False)["class_logits"])[0]
    limit = np.log(model.score_threshold / (1 - model.score_threshold))
    if is_softmax:
        # A class passes if its logit is above the sum of the others, including the background.
        objects = logits[:, :-1].astype("float64")
        others = np.log(np.exp(objects).sum(-1, keepdims=True) - np.exp(objects))
        free = np.exp(objects - limit) - np.exp(others)  # the largest value of the background's exponential
        values = np.where(free > 0, np.log(np.maximum(free, 1e-30)), -60.0) - logits[:, -1:]
    else:
        values = logits
    count = int(count * values.size) if count < 1 else count
    kept = np.sort(values, axis=None)[-min(count, values.size)]
    for output in outputs:
        bias = np.zeros(output.bias.shape, "float32")
        if is_softmax:
            bias[-1] = kept
        else:
            bias += limit - kept
        output.bias.assign(bias)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--heads", nargs="+", default=HEADS, choices=HEADS, metavar="HEAD")
    add("--formats", nargs="*", default=FORMATS, choices=FORMATS, metavar="FORMAT")
    add("--classes", type=int, default=80)
    add("--candidates", choices=list(CANDIDATES), default="many")
    add("--size", type=int, nargs=2, default=(320, 320))
    add("--rounds", type=int, default=7, help="0 for none")
    add("--threads", type=int, default=2)
    add("--folder", type=pathlib.Path, help="keeps the exports, and takes those that are there")
    add_output(parser)
    arguments = parser.parse_args(argv)
    height, width = size = tuple(arguments.size)
    case = f"b0, 1 x {height} x {width}, {arguments.classes} classes, {arguments.candidates} candidates"
    print(f"\nDetectors and their exports, {case}: milliseconds")
    numbers = []
    for head in arguments.heads:
        with tempfile.TemporaryDirectory() as folder:
            options = arguments.threads, tuple(arguments.formats), str(arguments.folder or folder)
            try:
                worker = Worker(
                    ExportedDetector, head, arguments.classes, arguments.candidates, size, *options
                )
            except WorkerError as error:
                print(f"{head}: {error}")
                continue
            num_detections, errors = worker("describe")
            milliseconds = worker("take_turns", arguments.rounds) if arguments.rounds else {}
            worker.close()
        row = "  ".join(f"{name} {value:7.1f}" for name, value in milliseconds.items())
        print(
            f"{head:16} {row}  {num_detections} detections, errors of scores up to {max(errors.values()):.0e}"
        )
        numbers += [
            (case, f"{head}, {name}", "float32", "milliseconds", value)
            for name, value in milliseconds.items()
        ]
    write_results(arguments.output, "detector_exports", numbers)


if __name__ == "__main__":
    main()
