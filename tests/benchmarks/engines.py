"""The ways to run VAN's forward pass that `inference.py` compares; each class lives in a process of its own.

All take images of whole numbers 0 .. 255, (batch, height, width, 3), as a NumPy array, and normalise them
inside; our exports take uint8, the others float32. All have the same methods: `list_rows` (what they run, and
what they leave out and why), `start` (gets ready for a shape), `measure_error` (against stock Keras layers in
float32) and `take_turn`. A row's name is a pair: what runs, and its precision.
"""

import contextlib
import os
import pathlib

import numpy as np

from tests.benchmarks.turns import time_calls

FLOAT, HALF = "float32", "bfloat16"
POLICIES = {FLOAT: "float32", HALF: "mixed_bfloat16"}
CALIBRATION_SIZE = (1, 512, 512, 3)  # with fewer positions, the statistics would not fit other images


def make_images(shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("float32")


def explain(error):
    """Returns an error in one line, as the reason for leaving out a row."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


class Engine:
    """What the engines share: `self.calls`, row -> function of images -> dict of levels."""

    image_dtype = "float32"

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.calls = {}
        self.left_out = []

    def list_rows(self):
        return list(self.calls), self.left_out

    def start(self, shape):
        self.images = make_images(shape).astype(self.image_dtype)
        for call in self.calls.values():
            call(self.images)
            call(self.images)

    def measure_error(self, row):
        """Returns the largest difference from the exact map, over its largest value, of the worst level."""
        exact = np.load(self.folder / "exact.npz")
        outputs = self.calls[row](self.images)
        return max(
            float(np.abs(self.to_array(outputs[level]) - exact[level]).max() / np.abs(exact[level]).max())
            for level in exact.files
        )

    def take_turn(self, row):
        return time_calls(lambda: self.calls[row](self.images))

    @staticmethod
    def to_array(output):
        """Returns float32 (batch, height, width, channels)."""
        return np.asarray(output, "float32")


class KerasEngine(Engine):
    """Our model, plain, deployed and as a SavedModel, and stock layers; writes the weights for the others."""

    def __init__(self, variant, num_threads, folder):
        super().__init__(folder)
        import keras
        import tensorflow as tf

        from tests.benchmarks.backbone import build_stock, calibrate, copy_weights
        from tests.benchmarks.multiply_accumulates import check_against_published
        from van_backbones import VANBackbone
        from van_backbones.checkpoints.loading import to_state_dict

        tf.config.threading.set_intra_op_parallelism_threads(num_threads)
        tf.config.threading.set_inter_op_parallelism_threads(num_threads)
        keras.utils.set_random_seed(0)  # the next process uses the exports of this one
        tf.get_logger().setLevel("ERROR")  # it warns about graphs that `start` traces again on purpose
        self.models = {}
        for precision, policy in POLICIES.items():
            model = VANBackbone(variant, drop_path_rate=0.0, dtype=policy)
            if precision == FLOAT:
                calibrate(model, make_images(CALIBRATION_SIZE))
                check_against_published(model)
                weights = model.get_weights()
            model.set_weights(weights)
            self.models["ours", precision] = model
        for precision in POLICIES:
            self._deploy(precision)
        for precision, policy in POLICIES.items():
            stock = build_stock(variant, policy)
            copy_weights(self.models["ours", precision], stock)
            self.models["stock Keras layers", precision] = stock
        self.calls = {row: model.predict_on_batch for row, model in self.models.items()}
        np.savez(self.folder / "weights.npz", **to_state_dict(self.models["ours", FLOAT]))
        self.tf, self.keras = tf, keras

    def _deploy(self, precision):
        try:
            from van_backbones.deployment import deploy

            self.models["ours, deployed", precision] = deploy(self.models["ours", precision])
        except Exception as error:  # whatever is wrong, the others can still be measured
            self.left_out.append((f"ours, deployed, {precision}", explain(error)))

    def _load_saved_model(self, precision, shape):
        from van_backbones.exporting import export
        from van_backbones.exporting.runtimes import load_export

        path = self.folder / f"saved_model_{precision}"
        options = {"image_size": shape[1:3], "batch_size": shape[0], "freeze_weights": True}
        export(self.models["ours", precision], path, **options)
        run, pixels = load_export(path), make_images(shape).astype("uint8")
        self.calls["SavedModel, ours exported", precision] = lambda images: run(pixels)  # which are the same

    def export(self, name, format):
        """Writes our float32 model; returns the reason if that fails, or None."""
        try:
            from van_backbones.exporting import export

            export(self.models["ours", FLOAT], self.folder / name, format=format)
        except Exception as error:
            return explain(error)

    def describe(self):
        """Returns the machine, and what PyTorch needs to know about the network."""
        from tests.benchmarks.backbone import describe_machine

        ours = self.models["ours", FLOAT]
        ratios = [
            ours.get_layer(f"stage{stage}_block0").expansion_ratio for stage in range(1, len(ours.widths) + 1)
        ]
        return f"{describe_machine()} {self.tf.__version__}", (ours.widths, ours.depths, ratios)

    def count(self, image_size):
        from tests.benchmarks.multiply_accumulates import count_multiply_accumulates

        return count_multiply_accumulates(self.models["ours", FLOAT], image_size)

    def start(self, shape):
        for model in self.models.values():
            # A graph for all shapes, which Keras would trace at the second one, is slower than one for each
            # shape.
            model.make_predict_function(force=True)
        for precision in POLICIES:
            self._load_saved_model(precision, shape)
        super().start(shape)
        exact = self.calls["stock Keras layers", FLOAT](self.images)
        np.savez(self.folder / "exact.npz", **{level: np.asarray(value) for level, value in exact.items()})

    def measure_peak(self, precision, side):
        """Returns FLOP/s of a square matrix product, and the disturbance."""
        matrix = self.tf.cast(self.tf.random.normal((side, side)), precision)
        return time_product(lambda: (matrix @ matrix)[0, 0].numpy(), side)


class TorchEngine(Engine):
    """PyTorch without compilation: Transformers' model as it is, and our own in channels last."""

    def __init__(self, row, num_threads, folder):
        super().__init__(folder)
        os.environ["USE_TF"] = "0"  # or Transformers loads TensorFlow into this process
        self.torch, self.model = load_torch_model(row, num_threads, self.folder)
        self._add_transformers(row)
        for precision in POLICIES:
            self.calls["PyTorch eager, channels last", precision] = self.make_call(self.model, precision)

    def make_call(self, model, precision):
        torch = self.torch

        def call(images):
            with torch.inference_mode(), autocast(torch, precision):
                # A view: NumPy's order of the axes is PyTorch's channels last.
                return model(torch.from_numpy(images).permute(0, 3, 1, 2))

        return call

    def _add_transformers(self, row):
        try:
            from transformers import VanConfig, VanModel
        except ImportError as error:
            self.left_out.append(("Transformers VanModel", explain(error)))
            return
        widths, depths, ratios = map(list, row)
        config = VanConfig(hidden_sizes=widths, depths=depths, mlp_ratios=ratios)
        model = VanModel(config).eval()
        copy_to_transformers(self.model, model)
        mean, deviation = self.model.mean, self.model.deviation
        torch = self.torch

        def call(images):
            with torch.inference_mode():
                pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
                maps = model((pixels - mean) / deviation, output_hidden_states=True).hidden_states
            return {f"P{stage}": outputs for stage, outputs in enumerate(maps, 2)}

        self.calls["Transformers VanModel, eager", FLOAT] = call

    @staticmethod
    def to_array(output):
        return output.permute(0, 2, 3, 1).float().numpy()

    def measure_peak(self, precision, side):
        """Returns FLOP/s of a square matrix product, and the disturbance."""
        matrix = self.torch.randn(side, side).to(getattr(self.torch, precision))
        return time_product(lambda: matrix @ matrix, side)


class CompiledTorchEngine(TorchEngine):
    """The same network through torch.compile, with frozen weights, compiled anew for each shape."""

    def __init__(self, row, num_threads, folder):
        Engine.__init__(self, folder)
        self.torch, self.model = load_torch_model(row, num_threads, self.folder)
        import torch._inductor.config

        # Weights as constants: PyTorch's own "deployed". It compiles in half the time, and is not slower.
        torch._inductor.config.freezing = True
        self.rows = [("torch.compile, channels last", precision) for precision in POLICIES]

    def list_rows(self):
        return self.rows, self.left_out

    def start(self, shape):
        self.torch._dynamo.reset()
        for row in self.rows:
            compiled = self.torch.compile(self.model, dynamic=False)
            self.calls[row] = self.make_call(compiled, row[1])
        super().start(shape)


class OpenVINOEngine(Engine):
    """Our exported model in OpenVINO, with either precision as the hint."""

    image_dtype = "uint8"

    def __init__(self, num_threads, folder):
        super().__init__(folder)
        import openvino

        self.core = openvino.Core()
        self.num_threads = num_threads
        self.rows = [("OpenVINO, ours exported", precision) for precision in POLICIES]

    def list_rows(self):
        return self.rows, self.left_out

    def start(self, shape):
        model = self.core.read_model(next(self.folder.rglob("*.xml")))
        model.reshape(list(shape))
        for row, hint in zip(self.rows, ("f32", "bf16"), strict=True):
            options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": self.num_threads}
            request = self.core.compile_model(model, "CPU", options).create_infer_request()
            self.calls[row] = self.make_call(request)
        super().start(shape)

    @staticmethod
    def make_call(request):
        def call(images):
            found = request.infer({0: images}, share_inputs=True, share_outputs=True)
            return name_levels(found.values())

        return call


class ONNXEngine(Engine):
    """Our exported model in ONNX Runtime, which has no bfloat16 on CPUs."""

    image_dtype = "uint8"

    def __init__(self, num_threads, folder):
        super().__init__(folder)
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        path = next(self.folder.rglob("*.onnx"))
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        self.calls["ONNX Runtime, ours exported", FLOAT] = lambda images: name_levels(
            session.run(None, {name: images})
        )


def load_torch_model(row, num_threads, folder):
    """Returns PyTorch and our network in it, with the weights that `KerasEngine` wrote."""
    import torch

    from tests.benchmarks.torch_van import VAN

    torch.set_num_threads(num_threads)
    model = VAN(row).eval()
    with np.load(folder / "weights.npz") as arrays:
        model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    return torch, model.to(memory_format=torch.channels_last)


def autocast(torch, precision):
    """Returns PyTorch's mixed precision on CPUs, or nothing."""
    return torch.autocast("cpu", torch.bfloat16) if precision == HALF else contextlib.nullcontext()


def copy_to_transformers(ours, theirs):
    """Copies weights between two PyTorch models that differ in names and in the order of the layer scales."""
    ours, theirs = ours.state_dict(), theirs.state_dict()
    # The model's last norm is never called.
    theirs = {name: value for name, value in theirs.items() if not name.startswith("layernorm.")}
    for is_scale in (False, True):
        sources = [value for name, value in ours.items() if ("layer_scale" in name) == is_scale]
        targets = [value for name, value in theirs.items() if ("_scaling" in name) == is_scale]
        for source, target in zip(sources, targets, strict=True):
            target.copy_(source)


def name_levels(maps):
    """Returns exported maps (batch, height, width, channels), in any order, as a dict of levels."""
    maps = sorted(maps, key=lambda output: output.shape[1] * output.shape[2], reverse=True)
    return {f"P{stage}": output for stage, output in enumerate(maps, 2)}


def time_product(function, side):
    """Returns the FLOP/s of a product of two square matrices, and the disturbance of the turn."""
    turn = time_calls(function, least=0.5)
    return 2 * side**3 / turn.seconds, turn.disturbance
