"""The box head of R-CNNs: which class is in a region, and where exactly."""

import keras
from keras import ops

from heads.layers.blocks import ConvolutionBlock, Layer, join_reference_layers


@keras.saving.register_keras_serializable("van_backbones.heads")
class BoxHead(Layer):
    """Classifies the features under a box and shifts it: wide dense layers, then two outputs.

    Args:
        num_classes: number of classes without the background.
        width: units of the dense layers.
        class_agnostic: whether a region has one box instead of one per class.
        num_convs: convolutions with batch norm before the dense layers, of as many channels as the regions.
        num_denses: wide dense layers.
        **kwargs: base arguments of the layer.

    Call arguments:
        regions: (batch, n, height, width, channels).
        exists: bool (batch, n), False for rows without a region, which do not count in the norms' statistics;
            None for all.

    Returns:
        float32 (batch, n, num_classes + 1), the background last, and (batch, n, num_classes or 1, 4).
    """

    def __init__(
        self,
        num_classes: int,
        width: int = 1024,
        class_agnostic: bool = False,
        num_convs: int = 0,
        num_denses: int = 2,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.num_classes = num_classes
        self.num_boxes = 1 if class_agnostic else num_classes
        self.width = width
        self.num_convs = num_convs

        def make_dense(units, name, deviation=None, activation=None):
            initializer = keras.initializers.RandomNormal(0.0, deviation) if deviation else "glorot_uniform"
            return keras.layers.Dense(
                units, activation, kernel_initializer=initializer, dtype=self.dtype_policy, name=name
            )

        self.shared = [make_dense(width, f"shared_{index}", activation="relu") for index in range(num_denses)]
        self.classifier = make_dense(num_classes + 1, "classifier", 0.01)
        self.regressor = make_dense(4 * self.num_boxes, "regressor", 0.001)

    def build(self, input_shape):
        *_, height, width, channels = input_shape
        self.convs = []
        for index in range(self.num_convs):
            block = ConvolutionBlock(channels, 3, dtype=self.dtype_policy, name=f"conv_{index}")
            block.build((None, height, width, channels))
            self.convs.append(block)
        self.shared[0].build((None, height * width * channels))
        for layer in (*self.shared[1:], self.classifier, self.regressor):
            layer.build((None, self.width))
        self.built = True

    def call(self, regions, training=None, exists=None):
        batch, count, height, width, channels = ops.shape(regions)
        x = ops.reshape(regions, (batch * count, height, width, channels))
        if exists is not None:
            exists = ops.reshape(exists, (batch * count, 1, 1))
        for block in self.convs:
            x = block(x, counts=exists)
        # Channels first, as the reference's weights expect.
        x = ops.reshape(ops.transpose(x, (0, 3, 1, 2)), (batch * count, height * width * channels))
        for layer in self.shared:
            x = layer(x)
        class_logits = ops.reshape(self.classifier(x), (batch, count, self.num_classes + 1))
        box_deltas = ops.reshape(self.regressor(x), (batch, count, self.num_boxes, 4))
        return ops.cast(class_logits, "float32"), ops.cast(box_deltas, "float32")

    def reference_layers(self):
        """Returns mmdetection's names: name -> layer."""
        parts = {f"shared_convs.{index}": block for index, block in enumerate(self.convs)}
        parts |= {f"shared_fcs.{index}": layer for index, layer in enumerate(self.shared)}
        return join_reference_layers({**parts, "fc_cls": self.classifier, "fc_reg": self.regressor})
