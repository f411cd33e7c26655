"""The bricks of the segmentation heads: convolution with batch norm and ReLU, and the last layer."""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="heads")
class BatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation that keeps PyTorch's statistics: the moving variance is the unbiased one.

    Over a map pooled to one position, the two variances differ by a factor of n / (n - 1) with the batch
    size as n. (`van_backbones.normalization` has the same class: the two packages do not import each other.)

    Args:
        momentum: share of the old statistics that a training step keeps.
        epsilon: added to the variance.
        **kwargs: arguments of `keras.layers.BatchNormalization`.
    """

    def __init__(self, momentum=0.9, epsilon=1e-5, **kwargs):
        super().__init__(momentum=momentum, epsilon=epsilon, **kwargs)

    def call(self, inputs, training=None, mask=None):
        if not (training and self.trainable):
            return super().call(inputs, training=training, mask=mask)
        kept = self.moving_variance * self.momentum
        outputs = super().call(inputs, training=True, mask=mask)
        count = ops.cast(ops.prod(ops.shape(inputs)[:-1]), kept.dtype)
        self.moving_variance.assign_add((self.moving_variance - kept) / ops.maximum(count - 1.0, 1.0))
        return outputs


@keras.saving.register_keras_serializable(package="heads")
class ConvolutionBlock(keras.layers.Layer):
    """Convolution without bias, batch normalisation, ReLU; the map keeps its size.

    Args:
        filters: output channels.
        kernel_size: side of the kernel, odd.
        folded: whether the norm is part of the convolution, for inference: see `fold`.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, filters, kernel_size, folded=False, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.folded = folded
        # PyTorch's kaiming normal over the fan out, which mmcv gives every such convolution. One initializer
        # for all blocks would draw the same values for each.
        initializer = keras.initializers.VarianceScaling(2.0, "fan_out", "untruncated_normal")
        self.conv = keras.layers.Conv2D(
            filters,
            kernel_size,
            padding="same",
            data_format="channels_last",
            use_bias=folded,
            kernel_initializer=initializer,
            # What is not trained any more is stored as it is used.
            dtype=self.compute_dtype if folded else self.dtype_policy,
            name="conv",
        )
        if not folded:
            self.norm = BatchNormalization(dtype=self.dtype_policy, name="norm")

    def build(self, input_shape):
        self.conv.build(input_shape)
        if not self.folded:
            self.norm.build((*input_shape[:-1], self.filters))
        self.built = True

    def fold(self, block):
        """Takes, if this block is folded, the weights of one that is not, and gives what that gives."""
        # `kernel`, as the weights would have what LoRA adds to it beside it.
        weights = [ops.convert_to_numpy(block.conv.kernel), *block.norm.get_weights()]
        kernel, gamma, beta, mean, variance = (np.asarray(values, np.float64) for values in weights)
        scale = gamma / np.sqrt(variance + block.norm.epsilon)
        self.conv.set_weights([kernel * scale, beta - mean * scale])

    def call(self, inputs, training=None):
        outputs = self.conv(inputs)
        return ops.relu(outputs if self.folded else self.norm(outputs, training=training))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def reference_layers(self):
        """Gives mmcv's names: name -> layer."""
        if self.folded:
            raise ValueError("a folded model has no norms to load or save by name: deploy after loading")
        return {"conv": self.conv, "bn": self.norm}

    def get_config(self):
        config = {"filters": self.filters, "kernel_size": self.kernel_size, "folded": self.folded}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="heads")
class PixelClassifier(keras.layers.Layer):
    """The last layer of a segmenter: whole channels dropped in training, then a 1 x 1 convolution.

    Args:
        num_classes: number of logits per position.
        dropout_rate: share of channels that are dropped in training.
        **kwargs: base arguments of the layer.
    """

    def __init__(self, num_classes, dropout_rate=0.1, **kwargs):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.dropout_rate = dropout_rate
        initializer = keras.initializers.RandomNormal(0.0, 0.01)
        dtype = self.dtype_policy
        self.dropout = keras.layers.SpatialDropout2D(
            dropout_rate, data_format="channels_last", dtype=dtype, name="dropout"
        )
        self.conv = keras.layers.Conv2D(
            num_classes,
            1,
            data_format="channels_last",
            kernel_initializer=initializer,
            dtype=dtype,
            name="conv",
        )

    def build(self, input_shape):
        self.conv.build(input_shape)
        self.built = True

    def call(self, inputs, training=None):
        return self.conv(self.dropout(inputs, training=training))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.num_classes)

    def get_config(self):
        return {**super().get_config(), "num_classes": self.num_classes, "dropout_rate": self.dropout_rate}
