"""Trains a small head for a few steps on one or two devices, for test_devices.py.

    python tests/train_on_devices.py HEAD NUM_DEVICES NUM_PICTURES NUM_EPOCHS FILE

Devices are logical ones of TensorFlow or JAX; on PyTorch they are processes, each of which runs this script
with RANK and WORLD_SIZE in its environment. It is a script because devices are a setting of the process.
"""

import contextlib
import os
import sys

import contracts
import keras
import numpy as np
from detection_reference import take_first

import heads
from van_backbones import VANBackbone

SIZE = (64, 64)
NO_DROPOUT = {"dropout_rate": 0.0}
DETECTOR = {"num_classes": 3, "channels": 8}
OPTIONS = {
    "RetinaNet": DETECTOR,
    "GFL": DETECTOR,
    "ATSS": DETECTOR,
    "MaskRCNN": {**DETECTOR, "num_proposals": 12},
    "CascadeMaskRCNN": {**DETECTOR, "num_proposals": 12, "box_head": "2fc"},
    "SparseRCNN": {**DETECTOR, "num_proposals": 12, "num_stages": 1},  # rounding grows from stage to stage
    "Mask2Former": {
        **{"num_things": 2, "num_stuff": 1, "channels": 8, "num_queries": 12},
        **{"num_encoder_layers": 1, "num_decoder_layers": 1, "num_points": 64},
    },
    "SemanticFPN": {"num_classes": 3, "channels": 8, "pyramid_channels": 16, **NO_DROPOUT},
    "SemanticFPN/cross_entropy+dice": {
        **{"num_classes": 3, "channels": 8, "pyramid_channels": 16, **NO_DROPOUT},
        **{"loss": "cross_entropy+dice", "class_weights": [0.5, 2.0, 7.0]},
    },
    "UPerNet": {"num_classes": 3, "channels": 8, "auxiliary_channels": 8, **NO_DROPOUT},
    "SimpleBaseline": {"num_keypoints": 3, "channels": 8},
    "EDN": {
        **{"channels": (4, 6, 5, 8, 4, 4), "extra_channels": 6},
        "dilations": ((1, 2), (1, 2), (1, 3), (1, 3), (1, 1), (1, 1)),
    },
}


def draw_points(shape):
    """Returns the same points for each mask, instead of random ones."""
    places = np.outer(np.arange(1, shape[-2] + 1), (0.7549, 0.5698)) % 1.0
    return keras.ops.broadcast_to(keras.ops.convert_to_tensor(places.astype("float32")), shape)


def make_targets(head, with_masks):
    """Returns four truths: three objects on the first of two devices, one on the second."""
    boxes = np.zeros((4, 2, 4), "float32")
    boxes[0] = [[4, 6, 30, 40], [20, 30, 60, 62]]
    boxes[1, 0], boxes[3, 0] = [10, 10, 50, 30], [0, 20, 33, 60]
    labels = np.array([[0, 1], [2, -1], [-1, -1], [1, -1]], "int32")
    masks = np.zeros((4, 2, *SIZE), "uint8")
    label_maps = np.full((4, *SIZE), 0, "int32")
    for index, row in np.argwhere(labels >= 0):
        left, top, right, bottom = boxes[index, row].astype(int)
        masks[index, row, top:bottom, left:right] = 1
        label_maps[index, top:bottom, left:right] = labels[index, row]
    if head.startswith(("SemanticFPN", "UPerNet", "EDN")):
        label_maps[2] = 255
        label_maps[0, :9] = 255
        return np.minimum(label_maps, 1) if head == "EDN" else label_maps
    if head == "SimpleBaseline":
        keypoints = np.random.default_rng(1).uniform(0, 64, (4, 3, 2)).astype("float32")
        return {"keypoints": keypoints, "weights": np.array([[1, 1, 1], [1, 0, 1], [0, 0, 0], [0, 1, 0]])}
    if head == "Mask2Former":
        return {"labels": labels, "masks": masks}
    return {"boxes": boxes, "labels": labels, **({"masks": masks} if with_masks else {})}


def share_out(num_devices):
    """Returns the scope of a model on several devices of this process."""
    if keras.backend.backend() == "jax":
        import jax

        devices = [f"cpu:{device.id}" for device in jax.devices()[:num_devices]]
        return keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False).scope()
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
    return tf.distribute.MirroredStrategy([f"CPU:{device}" for device in range(num_devices)]).scope()


def find_class(head):
    """Returns the class of a key of `OPTIONS`, in which other options may follow the class's name."""
    return getattr(heads, head.partition("/")[0])


def make_model(head):
    """Returns a head on a small VAN, whose weights and random parts are always the same."""
    keras.utils.set_random_seed(0)
    backbone = VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1), drop_path_rate=0.0)
    model = find_class(head)(backbone, **OPTIONS[head])
    contracts.shake_weights(model)
    model.draw_priorities, model.draw_points = take_first, draw_points
    return model


def train_in_process(model, images, targets, num_steps, rank, num_processes):
    """Trains with PyTorch's DistributedDataParallel, as in Keras's guide; returns the losses of each step."""
    import torch
    from torch import distributed

    def read_share(array):
        return torch.as_tensor(array[rank * len(images) // num_processes :][: len(images) // num_processes])

    images, targets = read_share(images), keras.tree.map_structure(read_share, targets)
    network = model
    if num_processes > 1:
        distributed.init_process_group("gloo")
        network = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], 0.001)
    history = []
    for _ in range(num_steps):
        losses = model.compute_losses(targets, network(images, training=True))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        step = torch.stack([sum(losses.values()), *losses.values()]).detach()
        if num_processes > 1:
            distributed.all_reduce(step)
        history.append(step.numpy() / num_processes)
    return dict(zip(["loss", *losses], np.transpose(history), strict=True))


def main(head, num_devices, num_pictures, num_epochs, path):
    images = np.random.default_rng(0).uniform(0, 255, (num_pictures, *SIZE, 3)).astype("float32")
    targets = make_targets(head, find_class(head).with_masks)
    if num_pictures > 4:  # a last batch, of which the second device gets a smaller share
        targets = keras.tree.map_structure(lambda array: array[np.arange(num_pictures) % 4], targets)
    if keras.backend.backend() == "torch":
        model = make_model(head)
        rank = int(os.environ.get("RANK", 0))
        history = train_in_process(model, images, targets, num_epochs, rank, num_devices)
    else:
        with share_out(num_devices) if num_devices > 1 else contextlib.nullcontext():
            model = make_model(head)
            model.compile(keras.optimizers.SGD(0.001))
            options = {"batch_size": 4, "epochs": num_epochs, "shuffle": False, "verbose": 0}
            history = model.fit(images, targets, **options).history
        if keras.backend.backend() == "jax":
            assert len(model.weights[0].value.devices()) == num_devices
    arrays = {f"history/{name}": values for name, values in history.items()}
    for weight in model.weights:
        if weight.dtype == "float32":
            arrays[weight.path] = keras.ops.convert_to_numpy(weight)
    if int(os.environ.get("RANK", 0)) == 0:
        np.savez(path, **arrays)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
