# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune a segmenter
#
# From a folder of pictures to a model in one file, which says for each pixel what it shows. Nothing is
# downloaded: the package draws the pictures, and the training takes about two minutes on two CPU cores.
# Comments that begin with **yours** say what to change for your own pictures, and for weights from ImageNet.
#
# `pip install '.[notebooks]'` in the repository installs what this notebook needs. It runs on the backend
# that `KERAS_BACKEND` names, TensorFlow by default.

# %%
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # without TensorFlow's messages about this machine

import keras
import numpy as np
from PIL import Image

from heads import SemanticFPN, WarmUpPolynomialDecay
from heads.data import (
    SemanticAugmentation,
    SemanticShapes,
    format_class_counts,
    open_semantic_folder,
    semantic_evaluation_batches,
    semantic_training_batches,
)
from heads.drawing import (
    class_palette,
    draw_comparison,
    draw_confusion,
    draw_curves,
    draw_legend,
    draw_result,
    overlay_label_map,
    tile_pictures,
)
from heads.metrics import SemanticScores, evaluate_semantic, format_semantic_scores
from van_backbones import VANBackbone, deploy

keras.utils.set_random_seed(0)

# %% [markdown]
# ## A folder of pictures
#
# A folder for segmentation holds `images/train`, `images/val`, and `labels/` with a PNG of the same name
# for each picture, whose pixels are class numbers; `classes.txt` names the classes. Other layouts are
# recognised as well, and so are outlines of objects from labelling tools: see `docs/data.md`.
#
# This cell writes such a folder.

# %%
folder = pathlib.Path(tempfile.mkdtemp())
for split, count, seed in (("train", 400, 0), ("val", 40, 1)):
    scenes = SemanticShapes(count, image_size=(96, 128), seed=seed)
    for kind in ("images", "labels"):
        (folder / kind / split).mkdir(parents=True)
    for number in range(count):
        scene = scenes[number]
        Image.fromarray(scene["image"]).save(folder / f"images/{split}/{number:03}.png")
        Image.fromarray(scene["semantic"].astype("uint8")).save(folder / f"labels/{split}/{number:03}.png")
(folder / "classes.txt").write_text("\n".join(scenes.class_names))
# yours: folder = pathlib.Path("path/to/data"), instead of all of the above
print(folder)

# %% [markdown]
# ## Look at the data first
#
# `check()` reads every file before anything is trained, and lists everything that is wrong at once, not
# after an hour. It returns the pixels of each class. Classes with less than 5 % are called rare: a short
# training hardly finds them.

# %%
train, held_out = open_semantic_folder(folder, "train"), open_semantic_folder(folder, "val")
counts = {"train": train.check(progress=False), "val": held_out.check(progress=False)}
print(format_class_counts(counts, train.class_names, "pixels"))

# %% [markdown]
# Only pictures show whether the labels are where they should be.

# %%
images, truths = zip(*train.load().take(4).as_numpy_iterator(), strict=True)
palette = class_palette(train.num_classes)
overlays = [overlay_label_map(*pair, 0.5, palette) for pair in zip(images, truths, strict=True)]
page = Image.fromarray(tile_pictures([images, overlays]))
page = np.array(page.resize((1000, 1000 * page.height // page.width)))
Image.fromarray(tile_pictures([[page], [draw_legend(train.class_names, 1000)]], margin=0))

# %% [markdown]
# ## The model
#
# A backbone turns a picture into features, a head turns these into classes. Both are small here, so that two
# CPU cores train them in two minutes, and they start with random weights. For pictures of the real world,
# take a whole backbone with weights from ImageNet, for which a few hundred pictures are a start, and leave
# out the two numbers of channels. The weights are downloaded once.

# %%
CROP = (96, 96)  # what a step sees of a picture; yours: (512, 512), or what your smallest objects need

small = {"widths": (16, 32, 64, 128), "depths": (1, 1, 2, 1)}
backbone = VANBackbone("b0", **small)  # yours: VANBackbone("b0", weights="imagenet")
model = SemanticFPN(
    backbone, train.num_classes, channels=64, pyramid_channels=64, class_names=train.class_names
)
print(f"{model.count_params():,} parameters")

# %% [markdown]
# ## Train
#
# `fit` sees random crops of the pictures, scaled, mirrored and in changed colours. The learning rate rises
# for some steps, and then falls to zero. For random weights it is 2e-3; for weights from ImageNet, take 2e-4.
#
# After each round the held-out pictures are scored. Before the first step nothing seems to happen for a
# while: Keras traces the model.

# %%
STEPS, ROUNDS = 640, 4

batches = semantic_training_batches(train, batch_size=8, augment=SemanticAugmentation(crop_size=CROP))
scores = SemanticScores(semantic_evaluation_batches(held_out))
schedule = WarmUpPolynomialDecay(2e-3, warm_up=STEPS // 10, steps=STEPS)
model.compile(optimizer=keras.optimizers.AdamW(schedule, weight_decay=1e-4))
history = model.fit(
    batches,
    steps_per_epoch=STEPS // ROUNDS,
    epochs=ROUNDS,
    callbacks=[scores],
    shuffle=False,  # the batches are shuffled already
    verbose=2,
)

# %% [markdown]
# If the loss still falls or the score still rises, train longer.

# %%
rounds = zip(*history.history.values(), strict=True)
log = [dict(zip(history.history, values, strict=True)) for values in rounds]
Image.fromarray(draw_curves(log, monitor="val_mean_iou"))

# %% [markdown]
# ## How good is it?
#
# The IoU of a class is the share of pixels that are right among all that are of the class or were taken for
# it. The mean over the classes counts a rare class as much as the sky.

# %%
found = evaluate_semantic(model, semantic_evaluation_batches(held_out))
print(format_semantic_scores(found, train.class_names))

# %% [markdown]
# Which classes are confused? Rows are the truth, in percent of its pixels.

# %%
Image.fromarray(draw_confusion(found["confusion"], train.class_names, in_percent=True))

# %% [markdown]
# And in pictures that it has never seen: image, truth, prediction, and the wrong pixels in red.

# %%
images, truths = zip(*held_out.load().take(3).as_numpy_iterator(), strict=True)
predictions = [found["label_map"] for found in model.predict_pictures(images, progress=False)]
Image.fromarray(draw_comparison(images, truths, predictions, train.class_names))

# %% [markdown]
# ## Save it, load it, use it
#
# A trained model is one file, with its weights and the names of its classes. To load it, import `heads` and
# `van_backbones` first; nothing else of this notebook is needed.

# %%
model.save(folder / "segmenter.keras")
loaded = keras.saving.load_model(folder / "segmenter.keras")
print(loaded.class_names)

# %% [markdown]
# `predict_pictures` takes a file, a folder, an array, or a list of them; its results are in the pixels of
# each file.

# %%
path = held_out.image_paths[0]
(result,) = loaded.predict_pictures(path, progress=False)
Image.fromarray(draw_result(path, result, loaded.class_names))

# %% [markdown]
# How much of the picture is what?

# %%
labels, sizes = np.unique(result["label_map"], return_counts=True)
for label, size in sorted(zip(labels, sizes, strict=True), key=lambda pair: -pair[1]):
    print(f"{loaded.class_names[label]:8}{size / result['label_map'].size:6.1%}")

# %% [markdown]
# ## Make it quicker
#
# `deploy` folds the norms of the backbone into its convolutions: the same answers from fewer operations.

# %%
deployed = deploy(loaded)
(again,) = deployed.predict_pictures(path, progress=False)
print(f"{np.mean(again['label_map'] == result['label_map']):.2%} of the pixels have the same class")

# %% [markdown]
# On TensorFlow, `van_backbones.export(model, "segmenter.onnx", "onnx")` writes it for other runtimes, also
# as "openvino", "litert" or "saved_model": see `docs/deployment.md`.
#
# ## Where to go from here
#
# - The same with more comfort, from the command line, with a report, `--resume` and early stopping:
#   `van-backbones train segmentation --data path/to/data --weights imagenet`
# - Rare classes, larger pictures, other heads: `docs/tasks/semantic_segmentation.md`
# - What does it look at? `backbone.ipynb`
