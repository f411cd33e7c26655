"""load_release: published weights as a whole model, with its head and the names of its classes."""

import keras

from van_backbones.backbone import VANBackbone
from van_backbones.checkpoints import load_checkpoint
from van_backbones.checkpoints.releases import find_release
from van_backbones.class_names import read_ade20k_names


# Registered for `from_release` of the heads, which know this package only through Keras.
@keras.saving.register_keras_serializable(package="van_backbones")
def load_release(name: str, head_class, backbone=None, **kwargs):
    """Returns the model of a published segmenter: weights, class names and how pictures are resized.

    `UPerNet.from_release(name)` is the short form.

    Args:
        name: a release with a `head`, such as "upernet_b2_ade20k": see `van_backbones.checkpoints.RELEASES`.
        head_class: the class that the release names, `heads.UPerNet` or `heads.SemanticFPN`, or a subclass.
        backbone: a `VANBackbone` of the release's variant with options of your own; None makes one.
        **kwargs: further arguments of the head. With another `num_classes` the last layers start fresh, with
            a warning, and there are no class names unless `class_names` gives them. Without a `resizing`,
            pictures get the size that the published scores were measured at: the short side 512, the long
            one at most 2048.

    Returns:
        A model of `head_class`.

    Raises:
        ValueError: for an unknown name, a release without a head, or one of another head or variant.
        van_backbones.checkpoints.DownloadError: where the release cannot be downloaded.
    """
    release = find_release(name, getattr(backbone, "variant", None))
    if release.head is None:
        raise ValueError(
            "the release must hold a whole segmenter; load this one with "
            f"VANBackbone({release.variant!r}, weights={name!r}). Received: {name!r}"
        )
    if release.head not in [each.__name__ for each in head_class.__mro__]:
        raise ValueError(
            f"the release {name!r} is of {release.head}: call {release.head}.from_release({name!r}). "
            f"Received: {head_class.__name__}"
        )
    if backbone is None:
        backbone = VANBackbone(release.variant, dtype=kwargs.get("dtype"))
    names = read_ade20k_names()
    if kwargs.setdefault("num_classes", len(names)) == len(names):
        kwargs.setdefault("class_names", names)
    model = head_class(backbone, **kwargs)
    if kwargs.get("resizing") is None:
        # The class comes from the head's own resizing, since this package does not import `heads`.
        model.resizing = type(model.resizing)(short_side=512, long_side=2048)
    load_checkpoint(model, name)
    return model
