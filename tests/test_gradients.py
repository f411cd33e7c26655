import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from van_backbones.gradients import differentiate

PROGRAM = """
import keras, numpy as np
from keras import ops
from van_backbones.gradients import differentiate
from van_backbones.feature_maps import grad_cam, receptive_field

arrays = {"a": np.arange(6).reshape(2, 3) - 2, "b": np.ones(3), "unused": np.ones((1, 2))}
found = differentiate(lambda t: ops.sum(t["a"] ** 2 * t["b"]), arrays)
print({name: each.tolist() for name, each in sorted(found.items())}, found["a"].dtype)
print({name: each.tolist() for name, each in differentiate(lambda t: ops.sum(ops.ones(3)), arrays).items()})

inputs = keras.Input((8, 8, 3))
conv = keras.layers.Conv2D(2, 4, strides=4, kernel_initializer="ones")
backbone = keras.Model(inputs, {"P2": conv(inputs)})
backbone.pyramid_outputs = dict(backbone.output)
pooled = keras.layers.GlobalAveragePooling2D()(backbone(inputs)["P2"])
model = keras.Model(inputs, keras.layers.Dense(2, kernel_initializer="ones")(pooled))
model.backbone = backbone
image = np.arange(192).reshape(8, 8, 3)
print(grad_cam(model, image, lambda logits: logits[0, 1])["P2"].tolist())
print(receptive_field(backbone, [image], "P2").sum())
"""


def run(backend):
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_all_backends(backend):
    pytest.importorskip(backend)
    gradients, none, cams, total = run(backend)
    assert gradients == (
        "{'a': [[-4.0, -2.0, 0.0], [2.0, 4.0, 6.0]], 'b': [5.0, 10.0, 14.0]".replace(
            "5.0, 10.0, 14.0", "5.0, 5.0, 9.0"
        )
        + ", 'unused': [[0.0, 0.0]]} float32"
    )
    assert none == "{'a': [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], 'b': [0.0, 0.0, 0.0], 'unused': [[0.0, 0.0]]}"
    # Each of two channels is the sum of its 4 x 4 pixels, and raises the logit by a quarter at each position.
    pixels = np.arange(192).reshape(8, 8, 3)
    sums = [[pixels[y : y + 4, x : x + 4].sum() for x in (0, 4)] for y in (0, 4)]
    np.testing.assert_allclose(np.array(eval(cams)), np.array(sums) * 2 / 4, rtol=1e-5)
    assert float(total) == 16  # all pixels of the middle position alike, with 1 each


def test_other_backends_are_refused(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "openvino")
    with pytest.raises(
        NotImplementedError, match=r"tensorflow, jax, torch: .*KERAS_BACKEND. Received: openvino"
    ):
        differentiate(lambda tensors: ops.sum(tensors["a"]), {"a": np.ones(2)})
