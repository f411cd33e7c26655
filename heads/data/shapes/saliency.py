"""The scenes of the embedded data set with things against all else, for salient object detection."""

from heads.data.shapes.scenes import THING_NAMES
from heads.data.shapes.semantic import SemanticShapes


class SaliencyShapes(SemanticShapes):
    """The scenes of `SemanticShapes` with two labels: 1 for all things, 0 for sky, ground and water.

    Args:
        num_images: The number of scenes.
        image_size: (height, width) in pixels, each at least 32.
        seed: Data sets with different seeds share no scene, e.g. 0 for training and 1 for validation.
    """

    def __init__(self, num_images: int = 1000, image_size: tuple[int, int] = (128, 128), seed: int = 0):
        super().__init__(num_images, image_size, seed)
        self.class_names = ("background", "object")
        self.num_classes = len(self.class_names)

    def __getitem__(self, index):
        scene = super().__getitem__(index)
        return {**scene, "semantic": (scene["semantic"] < len(THING_NAMES)).astype("int32")}
