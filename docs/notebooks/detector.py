# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train a detector
#
# From a folder of pictures with boxes to a model in one file, which finds objects and says what they are.
# Nothing is downloaded: the package draws the pictures, and the training takes about two minutes on two CPU
# cores. Comments that begin with **yours** say what to change for your own pictures, and for weights from
# ImageNet.
#
# `pip install '.[notebooks]'` in the repository installs what this notebook needs. It runs on the backend
# that `KERAS_BACKEND` names, TensorFlow by default.

# %%
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # without TensorFlow's messages about this machine

import keras
from PIL import Image

from heads import GFL, Resizing, WarmUpPolynomialDecay, to_coco
from heads.data import (
    DetectionAugmentation,
    DetectionShapes,
    detection_evaluation_batches,
    detection_training_batches,
    format_class_counts,
    open_detection_folder,
)
from heads.drawing import (
    draw_curves,
    draw_detection_comparison,
    draw_detections,
    draw_precision_recall,
    draw_result,
    tile_pictures,
)
from heads.metrics import (
    CocoScores,
    count_mistakes,
    evaluate_coco,
    format_coco_scores,
    format_mistakes,
    measure_precision,
    predict_coco_results,
)
from van_backbones import VANBackbone

keras.utils.set_random_seed(0)

# %% [markdown]
# ## A folder of pictures
#
# This cell writes one in COCO's format: a JSON file for each split, and its pictures. Folders of YOLO,
# Pascal VOC and labelme are read as they are, too: see `docs/data.md`.

# %%
folder = pathlib.Path(tempfile.mkdtemp())
(folder / "annotations").mkdir()
for split, count, seed in (("train", 400, 0), ("val", 40, 1)):
    shapes = DetectionShapes(count, image_size=(128, 128), seed=seed)
    content = shapes.to_coco()
    (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    (folder / f"images/{split}").mkdir(parents=True)
    for example, entry in zip(shapes.load().as_numpy_iterator(), content["images"], strict=True):
        Image.fromarray(example["image"]).save(folder / f"images/{split}" / entry["file_name"])
# yours: folder = pathlib.Path("path/to/data"), instead of all of the above
print(folder)

# %% [markdown]
# ## Look at the data first
#
# `check()` reads every picture and every box before anything is trained, and lists everything that is wrong
# at once, not after an hour. It returns the objects of each class.

# %%
train, held_out = open_detection_folder(folder, "train"), open_detection_folder(folder, "val")
counts = {"train": train.check(progress=False), "val": held_out.check(progress=False)}
print(f"Found {train.format}'s format")
print(format_class_counts(counts, train.class_names, "objects"))

# %% [markdown]
# Are the boxes on the objects, and do they have the right names?

# %%
examples = list(train.load().take(3).as_numpy_iterator())
Image.fromarray(
    tile_pictures([[draw_detections(each["image"], each, train.class_names) for each in examples]])
)

# %% [markdown]
# ## The model
#
# A backbone turns a picture into features, a head turns these into boxes. Both are small here, so that two
# CPU cores train them in two minutes, and they start with random weights. For pictures of the real world,
# take a whole backbone with weights from ImageNet, and leave out `channels` and `num_convs`. The weights are
# downloaded once.
#
# `GFL` is a fast one-stage detector. The model keeps `resizing`: when it is used, pictures of any size are
# fitted into `SIZE`.

# %%
SIZE = (128, 128)  # yours: (512, 512), or what your smallest objects need

small = {"widths": (16, 32, 64, 128), "depths": (1, 1, 2, 1)}
backbone = VANBackbone("b0", **small)  # yours: VANBackbone("b0", weights="imagenet")
model = GFL(
    backbone,
    train.num_classes,
    channels=64,
    num_convs=1,
    class_names=train.class_names,
    resizing=Resizing(SIZE),
)
print(f"{model.count_params():,} parameters")

# %% [markdown]
# ## Train
#
# For random weights, a learning rate of 2e-3 suits AdamW with clipped gradients; for weights from ImageNet,
# take 1e-4 for batches of 16 pictures, and less for smaller ones. Before the first step nothing seems to
# happen for a while: Keras traces the model.

# %%
STEPS, ROUNDS = 1200, 4

augment = DetectionAugmentation(image_size=SIZE, scale_range=(0.8, 1.25))
batches = detection_training_batches(train, batch_size=4, augment=augment)
evaluation = detection_evaluation_batches(held_out, 4, image_size=SIZE)
scores = CocoScores(evaluation, held_out.to_coco(), held_out.image_ids, held_out.category_ids)
schedule = WarmUpPolynomialDecay(2e-3, warm_up=STEPS // 10, steps=STEPS)
model.compile(optimizer=keras.optimizers.AdamW(schedule, weight_decay=1e-4, global_clipnorm=1.0))
history = model.fit(
    batches,
    steps_per_epoch=STEPS // ROUNDS,
    epochs=ROUNDS,
    callbacks=[scores],
    shuffle=False,  # the batches are shuffled already
    verbose=2,
)

# %% [markdown]
# If the loss still falls or the score still rises, train longer. A detector needs more steps than a
# segmenter.

# %%
rounds = zip(*history.history.values(), strict=True)
log = [dict(zip(history.history, values, strict=True)) for values in rounds]
Image.fromarray(draw_curves(log, monitor="val_bbox_AP"))

# %% [markdown]
# ## How good is it?
#
# AP50 counts a box as right if it covers an object of its class with an IoU of a half; AP is the mean over
# ten such limits, up to 0.95. Both look at all boxes, also uncertain ones, in the order of their scores.

# %%
results = predict_coco_results(model, evaluation, held_out.image_ids, held_out.category_ids)
print(format_coco_scores(evaluate_coco(held_out.to_coco(), results)))

# %%
Image.fromarray(draw_precision_recall(measure_precision(held_out.to_coco(), results)))

# %% [markdown]
# ## Which score is high enough?
#
# A detector returns many boxes with low scores. Where to cut depends on which mistakes cost you more: a low
# threshold makes up objects, a high one misses them.

# %%
for threshold in (0.3, 0.4, 0.5):
    mistakes = count_mistakes(held_out.to_coco(), results, threshold)
    missed, false = mistakes["per_picture_missed"].sum(), mistakes["per_picture_false"].sum()
    print(f"scores of {threshold} or more: {missed} objects missed, {false} boxes false")

# %%
THRESHOLD = 0.4
print(format_mistakes(count_mistakes(held_out.to_coco(), results, THRESHOLD), THRESHOLD))

# %% [markdown]
# In pictures that it has never seen: solid boxes are right, dashed ones false, and dotted white ones were
# missed.

# %%
examples = list(held_out.load().take(3).as_numpy_iterator())
images = [each["image"] for each in examples]
found = model.predict_pictures(images, progress=False)
Image.fromarray(draw_detection_comparison(images, examples, found, train.class_names, THRESHOLD))

# %% [markdown]
# ## Save it, load it, use it
#
# A trained model is one file, with its weights, the names of its classes, and how pictures are resized. To
# load it, import `heads` and `van_backbones` first; nothing else of this notebook is needed.

# %%
model.save(folder / "detector.keras")
loaded = keras.saving.load_model(folder / "detector.keras")
print(loaded.class_names)

# %% [markdown]
# `predict_pictures` takes a file, a folder, an array, or a list of them; its results are in the pixels of
# each file.

# %%
path = held_out.image_paths[0]
(result,) = loaded.predict_pictures(path, score_threshold=THRESHOLD, progress=False)
for name, score, box in zip(result["names"], result["scores"], result["boxes"], strict=True):
    print(f"{name:8}{score:6.2f}  {box.round(1)}")

# %%
Image.fromarray(draw_result(path, result, loaded.class_names, THRESHOLD))

# %% [markdown]
# COCO's tools and servers take rows like these; `heads.to_supervision(result)` converts a result for
# supervision's trackers and counters.

# %%
to_coco(result, image_id=held_out.image_ids[0], category_ids=held_out.category_ids)[:2]

# %% [markdown]
# ## Where to go from here
#
# - The same with more comfort, from the command line, with a report, `--resume` and early stopping:
#   `van-backbones train detection --data path/to/data --weights imagenet`
# - Small objects in large pictures, other detectors: `docs/tasks/detection.md`
# - Outlines instead of boxes: `docs/tasks/instance_segmentation.md`
# - What is the reason for a box? `backbone.ipynb`
