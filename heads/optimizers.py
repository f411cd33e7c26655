"""AdamW with a small graph."""

from typing import NamedTuple

import keras
from keras import ops

from heads.ops.backends import apply_adam

# Registered here and not in a script: see `heads/schedules.py`.


@keras.saving.register_keras_serializable("van_backbones.heads")
class AdamW(keras.optimizers.AdamW):
    """`keras.optimizers.AdamW` with the same arguments and state, in fewer operations.

    Keras computes the learning rate and the corrections of the moments' bias anew for each variable. A model
    has hundreds of these, so that under a schedule most of a training step's graph, and much of the time to
    the first step, was spent on them. Here they are computed once a step. On TensorFlow, one operation then
    updates a variable and its moments, except with `amsgrad`. Its steps differ from Keras's by up to 1e-5 of
    their length, because 1 - 0.999 is not exact in float32.

    On PyTorch, which has no graph, an object of Keras's own class is made: it updates all variables at once.

    Args:
        *args, **kwargs: arguments of `keras.optimizers.AdamW`.
    """

    def __new__(cls, *args, **kwargs):
        if keras.backend.backend() == "torch":
            return keras.optimizers.AdamW(*args, **kwargs)
        return super().__new__(cls)

    def update_step(self, gradient, variable, learning_rate):
        """Updates a variable and its moments.

        Args:
            gradient: the gradient of the variable.
            variable: the variable.
            learning_rate: dtype -> `Factors`, instead of Keras's scalar.
        """
        factors = learning_rate[keras.backend.standardize_dtype(variable.dtype)]
        gradient = ops.cast(gradient, variable.dtype)
        index = self._get_variable_index(variable)
        mean, square = self._momentums[index], self._velocities[index]
        if keras.backend.backend() == "tensorflow" and not self.amsgrad:
            if self._use_weight_decay(variable):
                self.assign_sub(variable, ops.multiply(variable, factors.decay))
            apply_adam(variable, mean, square, gradient, **factors.fused)
            return
        self.assign_add(mean, ops.multiply(ops.subtract(gradient, mean), factors.mean_share))
        change = ops.subtract(ops.square(gradient), square)
        self.assign_add(square, ops.multiply(change, factors.square_share))
        if self.amsgrad:
            largest = self._velocity_hats[index]
            self.assign(largest, ops.maximum(largest, square))
            square = largest
        divisor = ops.add(ops.sqrt(square), factors.epsilon)
        step = ops.divide(ops.multiply(mean, factors.step_size), divisor)
        if self._use_weight_decay(variable):
            decay = ops.multiply(ops.multiply(variable, factors.weight_decay), factors.learning_rate)
            self.assign(variable, ops.subtract(ops.subtract(variable, decay), step))
        else:
            self.assign_sub(variable, step)

    def _apply_weight_decay(self, variables):
        """Does nothing: `update_step` decays the weights."""

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        dtypes = {keras.backend.standardize_dtype(variable.dtype) for variable in trainable_variables}
        factors = {dtype: self._compute_factors(learning_rate, dtype) for dtype in sorted(dtypes)}
        super()._backend_update_step(grads, trainable_variables, factors)

    def _compute_factors(self, learning_rate, dtype):
        """Returns the `Factors` of this step."""
        # `ops.cast` rounds a number to float32 first, and so does Keras with these.
        rate, step, weight_decay = (
            ops.cast(value, dtype) for value in (learning_rate, self.iterations + 1, self.weight_decay)
        )
        betas = self.beta_1, self.beta_2
        mean_left, square_left = (ops.power(ops.cast(beta, dtype), step) for beta in betas)
        constants = (*betas, *(1 - beta for beta in betas), self.epsilon)
        beta_1, beta_2, mean_share, square_share, epsilon = (
            ops.convert_to_tensor(constant, dtype) for constant in constants
        )
        step_size = rate * ops.sqrt(1 - square_left) / (1 - mean_left)
        powers = {"beta1_power": mean_left, "beta2_power": square_left}
        return Factors(
            rate,
            step_size,
            mean_share,
            square_share,
            epsilon,
            weight_decay,
            weight_decay * rate,
            {"lr": rate, "beta1": beta_1, "beta2": beta_2, "epsilon": epsilon, **powers},
        )


class Factors(NamedTuple):
    """The numbers of a step that all variables of a dtype share; every field but one is a scalar tensor."""

    learning_rate: object
    step_size: object  # the learning rate, corrected for the bias of the moments
    mean_share: object  # of the gradient in the first moment
    square_share: object  # of the squared gradient in the second one
    epsilon: object
    weight_decay: object
    decay: object  # the share of a weight that is taken from it
    fused: dict  # what `apply_adam` takes
