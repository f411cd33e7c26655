# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Look into the backbone
#
# What does a backbone see in a picture, how far does it see, and which part of the picture is the reason for
# a model's answer? Nothing is downloaded: the package draws the picture, and the backbone is trained on the
# way, for about a minute on two CPU cores. Change the lines that are marked **yours** for your own picture,
# and for weights from ImageNet.
#
# `pip install '.[notebooks]'` in the repository installs what this notebook needs. It runs on the backend
# that `KERAS_BACKEND` names, TensorFlow by default.

# %%
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # without TensorFlow's messages about this machine

import keras
import numpy as np
from PIL import Image

from heads import SemanticFPN
from heads.class_scores import score_class
from heads.data import SemanticAugmentation, SemanticShapes, semantic_training_batches
from heads.drawing import draw_result, label_picture, tile_pictures
from van_backbones import VANBackbone
from van_backbones.feature_maps import (
    draw_feature_comparison,
    draw_feature_maps,
    draw_receptive_fields,
    grad_cam,
    has_random_weights,
    measure_reach,
    project_to_rgb,
    receptive_field,
    similarity_to_point,
)

keras.utils.set_random_seed(0)

# %%
image = SemanticShapes(10, image_size=(192, 256), seed=1)[7]["image"]
# yours: image = np.array(Image.open("picture.jpg").convert("RGB"))
Image.fromarray(image)

# %% [markdown]
# ## Four stages, four maps
#
# VAN has four stages. Each one halves the resolution (the first one quarters it) and returns more channels:
# P2 has a position for every 4 pixels, P5 one for every 32. All heads read these four maps.

# %%
backbone = VANBackbone("b0")  # yours: VANBackbone("b0", weights="imagenet")
pyramid = backbone.predict(image[None], verbose=0)
for level, features in pyramid.items():
    print(level, features.shape[1:])

# %% [markdown]
# ## Features as colours
#
# A position of P5 has 256 numbers. Their first three principal components, as red, green and blue, make a
# picture of them: positions with equal colours have similar features.

# %%


def draw_colours(pyramid):
    pictures = [Image.fromarray(project_to_rgb(features[0])) for features in pyramid.values()]
    pictures = [picture.resize((192, 144), Image.Resampling.NEAREST) for picture in pictures]
    return tile_pictures([map(label_picture, pictures, pyramid)])


print("RANDOM WEIGHTS" if has_random_weights(backbone) else "trained weights")
Image.fromarray(draw_colours(pyramid))

# %% [markdown]
# That looks as if the backbone had seen something. It has not: these are **RANDOM WEIGHTS**. Edges and
# colours survive any convolution. Remember this picture: it is what nothing looks like.
#
# ## Teach it something
#
# A minute of training as a segmenter is enough for a comparison, for which the untrained weights are kept.
# With weights from ImageNet you can leave out the training; everything below except the part on classes works
# without it.

# %%
STEPS = 120

untrained = VANBackbone("b0")
untrained.set_weights(backbone.get_weights())
scenes = SemanticShapes(400, image_size=(64, 64))
batches = semantic_training_batches(scenes, batch_size=8, augment=SemanticAugmentation(crop_size=(64, 64)))
model = SemanticFPN(backbone, scenes.num_classes, class_names=scenes.class_names)
model.compile(optimizer=keras.optimizers.AdamW(1e-3))
history = model.fit(batches, steps_per_epoch=STEPS // 2, epochs=2, shuffle=False, verbose=2)

# %% [markdown]
# What it sees in the picture after so little training:

# %%
(result,) = model.predict_pictures(image, progress=False)
Image.fromarray(draw_result(image, result, model.class_names))

# %% [markdown]
# ## Before and after
#
# Equal colours are equal features in both columns. The last one shows where the training has changed
# something.

# %%
Image.fromarray(draw_feature_comparison({"untrained": untrained, "trained": backbone}, image))

# %% [markdown]
# ## One page with everything
#
# A row for each level: its colours, the channels that vary most, how strong the attention is, and how
# similar each position is to the cross. The attention glows or fades along the borders of any picture,
# because its kernels reach over them; compare positions that are equally far from the border.

# %%
point = (128, 120)  # (x, y) in pixels
Image.fromarray(draw_feature_maps(backbone, image, num_channels=2, point=point))

# %% [markdown]
# The same as numbers: the cosine between the features at the point and those everywhere else.

# %%
features = backbone.predict(image[None], verbose=0)["P3"][0]
similarity = similarity_to_point(features, (point[1] // 8, point[0] // 8))
print(f"{np.mean(similarity > 0.8):.1%} of the positions have a cosine above 0.8")

# %% [markdown]
# ## Why this class?
#
# Grad-CAM shows where a level speaks for an answer, which is any number that is computed from the model's
# predictions. Here it is the score of a class over the pixels that were found to be of this class, for the
# two classes that fill most of the picture.

# %%
labels, sizes = np.unique(result["label_map"], return_counts=True)
largest = labels[np.argsort(-sizes)[:2]]
class_maps = {
    model.class_names[label]: grad_cam(model, image, lambda raw, label=label: score_class(model, raw, label))
    for label in map(int, largest)
}
Image.fromarray(draw_feature_maps(backbone, image, num_channels=1, class_maps=class_maps))

# %% [markdown]
# ## How far does it see?
#
# The effective receptive field: how strongly each pixel moves the features in the middle, on average over
# some pictures. The scale is logarithmic.

# %%
pictures = [SemanticShapes(4, image_size=(224, 224), seed=2)[number]["image"] for number in range(4)]
levels = ("P2", "P3", "P4", "P5")
fields = {level: receptive_field(backbone, pictures, level) for level in levels}
Image.fromarray(draw_receptive_fields(fields, len(pictures), backbone))

# %% [markdown]
# The large kernels could reach much farther. A network learns how much of that it uses: compare with the
# untrained weights.

# %%
before = {level: receptive_field(untrained, pictures, level) for level in levels}
for level in levels:
    reach, was = measure_reach(fields[level]), measure_reach(before[level])
    print(f"{level}: 95 % within {reach} pixels; untrained, RANDOM WEIGHTS: {was}")

# %% [markdown]
# ## Where to go from here
#
# - The same for any trained model, from the command line: `van-backbones features
#   runs/segmentation-1/best.keras picture.jpg --point 128 120`
# - What the pages show, and what they do not: `docs/feature_maps.md`
