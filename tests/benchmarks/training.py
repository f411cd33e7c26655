"""Times a training step of the backbone, in Keras's `fit` and in PyTorch, and measures its peak memory.

    python -m tests.benchmarks.training --variants b0 b1 --size 512x512 --batch-size 2

Forward, backward and AdamW, with equal initial weights and without drop path; the loss is the mean squared
difference between the four maps and fixed noise. The two frameworks take turns, each in a process of its own.
"""

import argparse
import functools
import pathlib
import resource
import tempfile

import numpy as np

from tests.benchmarks.engines import POLICIES, autocast, load_torch_model, make_images
from tests.benchmarks.inference import parse_size
from tests.benchmarks.results import add_output, write_results
from tests.benchmarks.turns import (
    Worker,
    WorkerError,
    describe_rounds,
    format_table,
    limit_threads,
    take_turns,
    time_calls,
)

LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.05
STEPS = 2  # of a turn
BUDGET = 120.0  # seconds after which a pair gets no further round


def main(argv=None):
    arguments = parse_arguments(argv)
    limit_threads(arguments.threads)
    shape = (arguments.batch_size, *arguments.size, 3)
    print(f"\nTraining step, {' x '.join(map(str, shape[:3]))}, {arguments.threads} threads")
    rows = []
    for variant in arguments.variants:
        # Two at a time: four would not fit into a small machine's memory.
        for precision in POLICIES:
            rows += measure_pair(variant, precision, shape, arguments)
    header = ("", "precision", "s per step", "times as fast as PyTorch", "peak MiB", "before", "first loss")
    print(format_table(header, rows), flush=True)
    case, numbers = " x ".join(map(str, shape[:3])), []
    for name, precision, seconds, _, peak, before, _ in rows:
        found = {"seconds per step": seconds, "peak MiB": peak, "MiB before": before}
        numbers += [(case, name, precision, key, value.replace(",", "")) for key, value in found.items()]
    write_results(arguments.output, "training", numbers)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--variants", nargs="+", help="default: b0 b1")
    add("--size", type=parse_size, help="default: 512x512")
    add("--batch-size", type=int, default=2)
    add("--rounds", type=int, help="quiet turns of two steps; default: 10")
    add("--threads", type=int, default=2)
    add("--quick", action="store_true", help="256 x 256, 3 rounds")
    add_output(parser)
    arguments = parser.parse_args(argv)
    arguments.variants = arguments.variants or (["b0"] if arguments.quick else ["b0", "b1"])
    arguments.size = arguments.size or ((256, 256) if arguments.quick else (512, 512))
    arguments.rounds = arguments.rounds or (3 if arguments.quick else 10)
    return arguments


def measure_pair(variant, precision, shape, arguments):
    """Returns the table's rows of ours and of PyTorch in one precision."""
    ours, theirs = f"{variant}, ours in fit", f"{variant}, PyTorch eager, channels last"
    workers, rows = {}, []
    with tempfile.TemporaryDirectory() as folder:
        try:
            common = (precision, shape, arguments.threads, folder)
            workers[ours] = Worker(KerasTrainer, variant, *common)
            workers[theirs] = Worker(TorchTrainer, workers[ours]("describe"), *common)
            losses = {name: worker("start") for name, worker in workers.items()}
            turns = {name: functools.partial(worker, "take_turn") for name, worker in workers.items()}
            medians, num_rounds = take_turns(turns, arguments.rounds, BUDGET)
            print(f"{variant}, {precision}: {describe_rounds(medians, num_rounds)}", flush=True)
            for name, worker in workers.items():
                before, peak = worker("measure_memory")
                seconds, ratio = medians[name].seconds, medians[theirs].seconds / medians[name].seconds
                memory = (f"{peak:,.0f}", f"{before:,.0f}")
                rows.append(
                    (name, precision, f"{seconds:.3f}", f"{ratio:.2f}", *memory, f"{losses[name]:.4f}")
                )
        except WorkerError as error:
            print(f"left out: {variant}, {precision}: {error}", flush=True)
        finally:
            for worker in workers.values():
                worker.close()
    return rows


class Trainer:
    """What both share; `run_steps` returns the loss of the first step."""

    def start(self):
        """Returns the loss of the first step."""
        self.memory_before = measure_peak_memory()
        loss = self.run_steps(1)
        self.run_steps(STEPS)
        return loss

    def take_turn(self):
        return time_calls(lambda: self.run_steps(STEPS), count=STEPS)

    def measure_memory(self):
        """Returns the MiB after the model was built, and at the peak."""
        return self.memory_before, measure_peak_memory()


class KerasTrainer(Trainer):
    def __init__(self, variant, precision, shape, num_threads, folder):
        import tensorflow as tf

        from van_backbones import VANBackbone
        from van_backbones.checkpoints.loading import to_state_dict

        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(num_threads)
        import keras

        from heads import AdamW

        keras.utils.set_random_seed(0)
        self.model = VANBackbone(variant, drop_path_rate=0.0, dtype=POLICIES[precision])
        np.savez(pathlib.Path(folder) / "weights.npz", **to_state_dict(self.model))

        def measure_loss(noise, outputs):
            # Keras would compute the mean in half precision.
            return keras.ops.mean(keras.ops.square(keras.ops.cast(outputs, "float32") - noise))

        self.model.compile(
            AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
            loss=dict.fromkeys(self.model.output, measure_loss),
        )
        self.model.optimizer.build(self.model.trainable_variables)  # as our heads do before the first step
        images = make_images(shape)
        noise = make_noise(shape, self.model.widths)
        options = tf.data.Options()
        options.autotune.enabled = False  # see heads/data/prefetching.py
        self.batches = tf.data.Dataset.from_tensors((images, noise)).cache().repeat().with_options(options)

    def describe(self):
        blocks = [self.model.get_layer(f"stage{stage}_block0") for stage in (1, 2, 3, 4)]
        return self.model.widths, self.model.depths, [block.expansion_ratio for block in blocks]

    def run_steps(self, num_steps):
        history = self.model.fit(self.batches, steps_per_epoch=num_steps, verbose=0, shuffle=False)
        return history.history["loss"][0]


class TorchTrainer(Trainer):
    def __init__(self, network, precision, shape, num_threads, folder):
        self.torch, model = load_torch_model(network, num_threads, pathlib.Path(folder))
        self.precision = precision
        self.model = model.train()
        self.optimizer = self.torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.images = self.torch.from_numpy(make_images(shape)).permute(0, 3, 1, 2)
        noise = make_noise(shape, network[0])
        self.noise = {
            level: self.torch.from_numpy(value).permute(0, 3, 1, 2) for level, value in noise.items()
        }

    def run_steps(self, num_steps):
        losses = []
        for _ in range(num_steps):
            self.optimizer.zero_grad(set_to_none=True)
            with autocast(self.torch, self.precision):
                outputs = self.model(self.images)
            loss = sum(
                (outputs[level].float() - value).square().mean() for level, value in self.noise.items()
            )
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
        return losses[0]


def make_noise(shape, widths):
    """Returns the noise that the maps are compared with: level -> (batch, height, width, channels)."""
    random = np.random.default_rng(1)
    noise = {}
    for stage, width in enumerate(widths, 2):
        size = [-(-side // 2**stage) for side in shape[1:3]]
        noise[f"P{stage}"] = random.standard_normal((shape[0], *size, width), "float32")
    return noise


def measure_peak_memory():
    """Returns the process's highest resident memory so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    main()
