"""Measures the gain from folding batch norms into the convolutions of a head, on top of a deployed backbone.

    python -m tests.benchmarks.folding --variant b0

UPerNet, float32, with a deployed backbone, once with the head's norms folded too and once without; in Keras
and in each export, in turns.
"""

import argparse
import functools
import pathlib
import statistics
import tempfile
import time

import keras
import numpy as np

import heads
from heads.layers.blocks import ConvolutionBlock
from van_backbones import VANBackbone, deploy
from van_backbones.exporting import load_export

SUFFIXES = {"saved_model": "", "onnx": ".onnx", "openvino": ".xml", "litert": ".tflite"}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="b0")
    parser.add_argument("--image-size", type=int, nargs=2, default=(512, 512))
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args(argv)
    backbone = deploy(VANBackbone(arguments.variant))
    plain, folded = (heads.UPerNet(backbone, 150) for _ in range(2))
    folded.set_weights(plain.get_weights())
    count = fold_norms(folded)
    images = np.random.default_rng(0).integers(0, 255, (1, *arguments.image_size, 3), "uint8")
    inputs = images.astype("float32")
    outputs = [model.predict_on_batch(inputs) for model in (folded, plain)]
    equal = f"{np.mean(outputs[0] == outputs[1]):.2%} of the predicted pixels are equal"
    print(f"UPerNet {arguments.variant}: {count} norms folded, {equal}", flush=True)
    report("keras", [lambda m=m: m.predict_on_batch(inputs) for m in (folded, plain)], arguments.repeats)
    with tempfile.TemporaryDirectory() as folder:
        for format, suffix in SUFFIXES.items():
            runs = []
            for name, model in (("folded", folded), ("plain", plain)):
                path = pathlib.Path(folder, f"{format}_{name}{suffix}")
                write(model, path, format, tuple(arguments.image_size))
                runs.append(functools.partial(load_export(path), images))
            report(format, runs, arguments.repeats)


def fold_norms(head):
    """Moves the norms of a head's convolution blocks into their convolutions; returns how many there were."""
    blocks = [layer for layer in head._flatten_layers() if isinstance(layer, ConvolutionBlock)]
    for block in blocks:
        gamma, beta, mean, variance = block.norm.get_weights()
        factors = gamma / np.sqrt(variance + block.norm.epsilon)
        kernel, *bias = block.conv.get_weights()
        shift = beta + (sum(bias) - mean) * factors
        block.conv.set_weights([kernel * factors, *(0 * value for value in bias)])
        block.norm = functools.partial(add_bias, bias=shift)
    return len(blocks)


def add_bias(inputs, mask=None, *, bias):
    """What is left of a norm whose factors are in the kernel before it."""
    return inputs + keras.ops.cast(bias, inputs.dtype)


def write(model, path, format, image_size):
    """Exports a model as it is, so that nothing else is folded."""
    from van_backbones.exporting.export import ServedModel, write_export

    served = ServedModel(model)
    write_export(served, path, format, served.make_signature(image_size, 1))


def report(name, runs, repeats):
    times = [[] for _ in runs]
    for run in runs:
        run()
    for _ in range(repeats):
        for run, own in zip(runs, times, strict=True):
            start = time.perf_counter()
            run()
            own.append(time.perf_counter() - start)
    folded, plain = (statistics.median(own) for own in times)
    best = min(times[1]) / min(times[0])
    print(
        f"{name:12} folded {folded:.3f} s, plain {plain:.3f} s: folding brings {plain / folded - 1:+.1%} "
        f"(median), {best - 1:+.1%} (fastest of {repeats})",
        flush=True,
    )


if __name__ == "__main__":
    main()
