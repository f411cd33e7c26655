"""The network from stock Keras layers; prints how VANBackbone's forward pass compares with it.

    python tests/benchmarks/backbone.py [--variant b1] [--size 512] [--batch-size 1] [--rounds 30]

A shortcut to the Keras rows of `inference.py`.
"""

import argparse
import os
import pathlib
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np

from van_backbones import VARIANTS


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--variant", default="b1", choices=list(VARIANTS))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args(argv)
    command = [sys.executable, "-m", "tests.benchmarks.inference", "--frameworks", "keras"]
    command += ["--variants", arguments.variant, "--sizes", f"{arguments.size}x{arguments.size}"]
    command += ["--batch-sizes", str(arguments.batch_size), "--rounds", str(arguments.rounds)]
    command += ["--seconds", "600"]
    sys.exit(subprocess.run(command, cwd=pathlib.Path(__file__).resolve().parents[2]).returncode)


def describe_machine():
    """Returns the CPU's name, its matrix extensions and its number of cores."""
    info = open("/proc/cpuinfo").read() if os.path.exists("/proc/cpuinfo") else ""
    name = next((line.split(":")[1].strip() for line in info.splitlines() if "model name" in line), "CPU")
    flags = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in info]
    keras_name = f"Keras {keras.__version__} on {keras.backend.backend()}"
    return f"{name}, {os.cpu_count()} cores, {', '.join(flags)}; {keras_name}"


def calibrate(model, images):
    """Sets the statistics of every norm to those of `images`, and makes layer scales matter."""
    random = np.random.default_rng(1)
    for variable in model.variables:
        if "layer_scale" in variable.path:
            variable.assign(random.uniform(0.1, 0.5, variable.shape))
    norms = [part for part in model.reference_layers().values() if hasattr(part, "moving_mean")]
    for norm in norms:
        norm.momentum = 0.0
    model(images, training=True)


def build_stock(variant, policy):
    """Returns the same network written with Keras's own layers only."""
    row, layers = VARIANTS[variant], keras.layers
    common = {"dtype": policy}
    x = images = keras.Input((None, None, 3))
    mean, deviation = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    x = layers.Normalization(mean=mean, variance=deviation**2, **common)(x)
    outputs = {}
    for stage, (width, depth, ratio) in enumerate(zip(*row[:3], strict=True)):
        size, strides = (7, 4) if stage == 0 else (3, 2)
        x = layers.ZeroPadding2D(size // 2, **common)(x)
        x = layers.Conv2D(width, size, strides, **common)(x)
        x = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, **common)(x)
        for _ in range(depth):
            y = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, **common)(x)
            z = layers.Conv2D(width, 1, activation=exact_gelu, **common)(y)
            a = layers.DepthwiseConv2D(5, padding="same", **common)(z)
            a = layers.DepthwiseConv2D(7, padding="same", dilation_rate=3, **common)(a)
            a = layers.Conv2D(width, 1, **common)(a)
            z = layers.Conv2D(width, 1, **common)(layers.Multiply(**common)([z, a]))
            z = ChannelScale(**common)(layers.Add(**common)([z, y]))
            x = layers.Add(**common)([x, z])
            y = layers.BatchNormalization(epsilon=1e-5, momentum=0.9, **common)(x)
            z = layers.Conv2D(width * ratio, 1, **common)(y)
            z = layers.DepthwiseConv2D(3, padding="same", activation=exact_gelu, **common)(z)
            z = ChannelScale(**common)(layers.Conv2D(width, 1, **common)(z))
            x = layers.Add(**common)([x, z])
        x = layers.LayerNormalization(epsilon=1e-6, **common)(x)
        outputs[f"P{stage + 2}"] = x
    return keras.Model(images, outputs)


def exact_gelu(x):
    """Returns Keras's GELU without the tanh approximation."""
    return keras.activations.gelu(x, approximate=False)


class ChannelScale(keras.layers.Layer):
    """Layer scale, for which Keras has no layer."""

    def build(self, input_shape):
        self.scale = self.add_weight((input_shape[-1],), "ones", name="scale")

    def call(self, x):
        return x * self.scale


def copy_weights(ours, stock):
    """Copies the weights from our backbone to the stock one, in the order of the official names."""
    parts = list(ours.reference_layers().values())
    ordered = []
    position = 0
    while position < len(parts):
        if isinstance(parts[position], keras.Variable):  # a block: its two layer scales come first
            scale_1, scale_2, norm1, proj_1, conv0, spatial, conv1, proj_2, norm2, fc1, dw, fc2 = parts[
                position : position + 12
            ]
            ordered += [norm1, proj_1, conv0, spatial, conv1, proj_2, scale_1, norm2, fc1, dw, fc2, scale_2]
            position += 12
        else:
            ordered.append(parts[position])
            position += 1
    graph_order = {id(operation): index for index, operation in enumerate(stock.operations)}
    targets = [layer for layer in stock.layers if layer.weights]
    targets = sorted(targets, key=lambda layer: graph_order[id(layer)])
    for part, target in zip(ordered, targets, strict=True):
        values = [part.numpy()] if isinstance(part, keras.Variable) else part.get_weights()
        target.set_weights(values)


if __name__ == "__main__":
    main()
