"""Times the backbone on a GPU, in turns: ours in Keras on JAX and on PyTorch, and plain PyTorch.

    python -m tests.benchmarks.gpu --variants b0 b1 --precisions bfloat16 --batch-size 8 --size 512x512

Forward passes of images that are on the GPU already, and training steps as in `training.py`: ours in `fit`.
float32 may use TF32 in matrix products and convolutions everywhere, which is JAX's default. Needs neither
TensorFlow nor a network; each way to run lives in a process of its own, and all compile at the same time.
"""

import argparse
import functools
import itertools
import os
import pathlib
import tempfile
import time

import numpy as np

from tests.benchmarks.engines import FLOAT, HALF, POLICIES, make_images
from tests.benchmarks.inference import parse_size
from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.training import LEARNING_RATE, WEIGHT_DECAY, make_noise
from tests.benchmarks.turns import Turn, Worker, WorkerError, format_table, take_turns

STEPS = 10  # of a turn in training


def main(argv=None):
    arguments = parse_arguments(argv)
    shape = (arguments.batch_size, *arguments.size, 3)
    case = " x ".join(map(str, shape[:3]))
    numbers = []
    for variant in arguments.variants:
        rows = []
        for (precision, name), found in measure(variant, shape, arguments).items():
            title = f"{variant}, {name}"
            rows.append((title, precision, *(format(value, ".3g") for value in found.values())))
            numbers += [(case, title, precision, key, value) for key, value in found.items()]
        header = ("", "precision", "forward, ms", "training step, ms", "peak, MiB", "largest error")
        print(f"\n{case}\n{format_table(header, rows)}", flush=True)
    write_results(arguments.output, "gpu", numbers)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--variants", nargs="+", default=["b0", "b1", "b2"])
    add("--precisions", nargs="+", default=list(POLICIES), choices=list(POLICIES))
    add("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES), help=f"{FIRST} always runs")
    add("--size", type=parse_size, default=(512, 512))
    add("--batch-size", type=int, default=8)
    add("--rounds", type=int, default=7)
    add_output(parser)
    return parser.parse_args(argv)


def measure(variant, shape, arguments):
    """Returns (precision, engine) -> quantity -> number."""
    engines = dict.fromkeys([FIRST, *arguments.engines])
    workers, network = {}, None
    with tempfile.TemporaryDirectory() as folder:
        try:
            for precision, name in itertools.product(arguments.precisions, engines):
                # The first one writes the weights and the exact maps that the others read.
                worker = Worker(ENGINES[name], variant, network, precision, shape, folder)
                network = network or worker("describe")
                workers[precision, name] = worker
            begin = time.perf_counter()
            for worker in workers.values():
                worker.send("start")
            for key, worker in list(workers.items()):
                try:
                    worker.receive()
                except WorkerError as error:
                    print(f"left out: {variant}, {key}: {error}", flush=True)
                    workers.pop(key).close()
            print(f"\n{variant}: ready after {time.perf_counter() - begin:.0f} s", flush=True)
            medians = {}
            for kind in ("forward", "train"):
                turns = {key: functools.partial(each, "take_turn", kind) for key, each in workers.items()}
                medians[kind] = take_turns(turns, arguments.rounds)[0]
            return {
                key: {
                    "milliseconds forward": round(1000 * medians["forward"][key].seconds, 3),
                    "milliseconds per step": round(1000 * medians["train"][key].seconds, 3),
                    "peak MiB": round(worker("measure_memory")),
                    "largest error": float(f"{worker('measure_error'):.1e}"),
                }
                for key, worker in workers.items()
            }
        finally:
            for worker in workers.values():
                worker.close()


class Engine:
    """What the engines share. Each one defines `forward`, a function, and `train`, for a number of steps."""

    def take_turn(self, kind):
        """Returns a `Turn` of calls that took 0.2 s or more together; it waits for the GPU at the end."""
        if kind == "train":
            self.train(2)
            begin = time.perf_counter()
            self.train(STEPS)
            return Turn((time.perf_counter() - begin) / STEPS, 0.0)
        count, seconds = 10, 0.0
        while seconds < 0.2:
            begin = time.perf_counter()
            for _ in range(count):
                outputs = self.forward()
            self.wait(outputs)
            seconds, per_call = time.perf_counter() - begin, (time.perf_counter() - begin) / count
            count *= 2
        return Turn(per_call, 0.0)

    def measure_error(self):
        """Returns the largest difference from the float32 maps, over their largest value."""
        with np.load(self.folder / "exact.npz") as exact:
            outputs = self.first_maps
            return max(
                float(np.abs(outputs[name] - exact[name]).max() / np.abs(exact[name]).max())
                for name in exact.files
            )


class KerasEngine(Engine):
    """Ours: builds the model in Keras, on the backend of the class."""

    backend = None

    def __init__(self, variant, network, precision, shape, folder):
        os.environ["KERAS_BACKEND"] = self.backend
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        import keras

        from van_backbones import VANBackbone
        from van_backbones.checkpoints.loading import load_state_dict, to_state_dict

        keras.utils.set_random_seed(0)
        self.keras, self.folder, self.shape = keras, pathlib.Path(folder), shape
        self.images = keras.ops.convert_to_tensor(make_images(shape))
        self.model = VANBackbone(variant, drop_path_rate=0.0, dtype=POLICIES[precision])
        path = self.folder / "weights.npz"
        if network is None:
            exact = VANBackbone(variant, drop_path_rate=0.0, dtype=POLICIES[FLOAT])
            np.savez(path, **to_state_dict(exact))
            np.savez(self.folder / "exact.npz", **self.compute_exactly(exact))
        with np.load(path) as arrays:
            load_state_dict(self.model, dict(arrays))

    def describe(self):
        blocks = [self.model.get_layer(f"stage{stage}_block0") for stage in (1, 2, 3, 4)]
        return self.model.widths, self.model.depths, [block.expansion_ratio for block in blocks]

    def start(self):
        self.make_forward()
        outputs = self.forward()
        self.first_maps = self.to_numpy(outputs)

        def measure_loss(noise, outputs):
            return self.keras.ops.mean(self.keras.ops.square(self.keras.ops.cast(outputs, "float32") - noise))

        self.model.compile(
            self.keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
            loss=dict.fromkeys(self.model.output, measure_loss),
        )
        noise = make_noise(self.shape, self.model.widths)
        self.batch = self.images, {name: self.keras.ops.convert_to_tensor(x) for name, x in noise.items()}
        self.train(3)

    def to_numpy(self, maps):
        ops = self.keras.ops
        return {name: ops.convert_to_numpy(ops.cast(value, "float32")) for name, value in maps.items()}

    def train(self, num_steps):
        batches = (self.batch for _ in range(num_steps))
        return self.model.fit(batches, steps_per_epoch=num_steps, verbose=0, shuffle=False).history["loss"]


class JAXEngine(KerasEngine):
    backend = "jax"

    def make_forward(self):
        import jax

        self.forward, self.wait = self.compile(self.model), jax.block_until_ready

    def compile(self, model):
        """Returns a function without arguments that returns the maps."""
        import jax

        variables = (model.trainable_variables, model.non_trainable_variables)
        # Copies, because `fit` donates the buffers of the variables to its step.
        weights = [[jax.numpy.array(variable.value) for variable in group] for group in variables]
        forward = jax.jit(lambda weights, images: model.stateless_call(*weights, images)[0])
        return lambda: forward(weights, self.images)

    def compute_exactly(self, model):
        """Returns the maps in float32 without TF32."""
        import jax

        with jax.default_matmul_precision("highest"):
            return self.to_numpy(self.compile(model)())

    def measure_memory(self):
        import jax

        return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**20


class KerasTorchEngine(KerasEngine):
    backend = "torch"

    def make_forward(self):
        import torch

        allow_tf32(torch)

        def forward():
            with torch.inference_mode():
                return self.model(self.images, training=False)

        self.forward, self.wait = forward, lambda outputs: synchronize(torch)

    def measure_memory(self):
        import torch

        return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0


class TorchEngine(Engine):
    """Plain PyTorch, channels last."""

    compiled = False

    def __init__(self, variant, network, precision, shape, folder):
        import torch

        from tests.benchmarks.torch_van import VAN

        allow_tf32(torch)
        self.torch, self.folder, self.precision = torch, pathlib.Path(folder), precision
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model = VAN(network)
        with np.load(self.folder / "weights.npz") as arrays:
            model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.images = torch.from_numpy(make_images(shape)).to(self.device).permute(0, 3, 1, 2)
        noise = make_noise(shape, network[0])
        self.noise = {
            level: torch.from_numpy(value).to(self.device).permute(0, 3, 1, 2)
            for level, value in noise.items()
        }

    def start(self):
        torch = self.torch
        call = torch.compile(self.model, dynamic=False) if self.compiled else self.model
        self.network = call

        def forward():
            with torch.inference_mode(), self.autocast():
                return self.network(self.images)

        self.forward, self.wait = forward, lambda outputs: synchronize(torch)
        self.model.eval()
        self.first_maps = {
            name: value.permute(0, 2, 3, 1).float().cpu().numpy() for name, value in forward().items()
        }
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=self.device == "cuda"
        )
        self.train(3)

    def autocast(self):
        enabled = self.precision == HALF
        return self.torch.autocast(self.device, self.torch.bfloat16, enabled=enabled)

    def take_turn(self, kind):
        self.model.train(kind == "train")
        return super().take_turn(kind)

    def train(self, num_steps):
        self.model.train()
        for _ in range(num_steps):
            self.optimizer.zero_grad(set_to_none=True)
            with self.autocast():
                outputs = self.network(self.images)
            loss = sum(
                (outputs[level].float() - value).square().mean() for level, value in self.noise.items()
            )
            loss.backward()
            self.optimizer.step()
        return loss.item()

    def measure_memory(self):
        return self.torch.cuda.max_memory_allocated() / 2**20 if self.device == "cuda" else 0


class CompiledTorchEngine(TorchEngine):
    compiled = True


def allow_tf32(torch):
    """Lets PyTorch compute float32 products as JAX does, and try cuDNN's algorithms."""
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True


def synchronize(torch):
    if torch.cuda.is_available():
        torch.cuda.synchronize()


FIRST = "Keras on JAX"
ENGINES = {
    FIRST: JAXEngine,
    "Keras on PyTorch": KerasTorchEngine,
    "PyTorch eager": TorchEngine,
    "torch.compile": CompiledTorchEngine,
}

if __name__ == "__main__":
    main()
