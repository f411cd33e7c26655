"""The learning rates of the paper's recipes."""

import keras
from keras import ops

# Registered here and not in a script, so that a model compiled with one of them loads wherever `heads` is
# imported.


@keras.saving.register_keras_serializable("van_backbones.heads")
class WarmUpPolynomialDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that rises linearly over `warm_up` steps, then falls to 0 at `steps`.

    Args:
        learning_rate: Highest rate.
        warm_up: Steps of the warm-up; 0 for none.
        steps: Steps of the training.
        power: Power of the polynomial; 1 is a straight line.

    Raises:
        ValueError: For a negative rate or warm-up, or fewer steps than 1.
    """

    def __init__(self, learning_rate: float, warm_up: int, steps: int, power: float = 1.0):
        _check_rate(learning_rate, warm_up)
        if steps < 1:
            raise ValueError(f"steps must be at least 1. Received: {steps!r}")
        self.learning_rate = learning_rate
        self.warm_up = warm_up
        self.steps = steps
        self.power = power
        self.decay = keras.optimizers.schedules.PolynomialDecay(learning_rate, steps, 0.0, power)

    def __call__(self, step):
        rate = self.decay(step)
        if self.warm_up:
            rate = rate * ops.minimum((ops.cast(step, "float32") + 1.0) / self.warm_up, 1.0)
        return rate

    def get_config(self):
        names = ("learning_rate", "warm_up", "steps", "power")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable("van_backbones.heads")
class WarmUpStepDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises from a thousandth over `warm_up` steps, then falls to a tenth at each milestone.

    Args:
        learning_rate: Highest rate.
        warm_up: Steps of the warm-up; 0 for none.
        milestones: Steps after which the rate falls.

    Raises:
        ValueError: For a negative rate or warm-up.
    """

    def __init__(self, learning_rate: float, warm_up: int, milestones):
        _check_rate(learning_rate, warm_up)
        self.learning_rate = learning_rate
        self.warm_up = warm_up
        self.milestones = milestones

    def __call__(self, step):
        step = ops.cast(step, "float32")
        rate = ops.convert_to_tensor(self.learning_rate, "float32")
        if self.warm_up:
            rate = rate * (0.001 + 0.999 * ops.minimum(step / self.warm_up, 1.0))
        for milestone in self.milestones:
            rate = rate * ops.where(step < milestone, 1.0, 0.1)
        return rate

    def get_config(self):
        return {name: getattr(self, name) for name in ("learning_rate", "warm_up", "milestones")}


def _check_rate(learning_rate, warm_up):
    # Not `learning_rate < 0`, which is False for NaN.
    if not learning_rate >= 0:
        raise ValueError(f"learning_rate must be at least 0. Received: {learning_rate!r}")
    if warm_up < 0:
        raise ValueError(f"warm_up must be at least 0. Received: {warm_up!r}")
