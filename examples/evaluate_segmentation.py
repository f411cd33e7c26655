"""Scores a semantic segmenter on held-out pictures: each class, and which classes are confused.

    python examples/evaluate_segmentation.py runs/segmentation-1/best.keras --data path/to/data --splits test

The data folder has a format that finetune_segmentation.py reads. A table of IoU and accuracy, the confusion
matrix and some pictures of each split go into a new folder beside the model: evaluation-1, evaluation-2 ...
"""

import pathlib

from options import (
    add_evaluation_options,
    add_label_options,
    check_evaluation_options,
    load_keras,
    make_parser,
)
from view_options import add_bands, add_views, check_views, list_views


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("model", type=pathlib.Path, help="a .keras file")
    add_evaluation_options(parser, "images and labels")
    add_label_options(parser)
    add_views(parser)
    add_bands(parser)
    arguments = parser.parse_args(argv)
    check_views(parser, arguments)
    check_evaluation_options(parser, arguments)
    return parser, arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import sys
import types

import keras
import numpy as np
from faults import explain_faults
from finetune_segmentation import compare, hold_out, open_split, take_examples
from predict_segmentation import segment_picture
from results import find_worst, keep_report, keep_scores, open_evaluation, save_picture
from shown_pixels import tell_channels

from heads.data import format_class_counts, semantic_evaluation_batches
from heads.drawing import draw_confusion
from heads.metrics import evaluate_semantic, format_semantic_scores

NUM_PICTURES = 6  # of each page


def main(argv=None):
    """Scores the model on each split, and keeps the scores beside it."""
    parser, arguments = parse_arguments(argv)
    with explain_faults(arguments.data, "finetune_segmentation.py"):
        folders = open_data(arguments)
    names = next(iter(folders.values())).class_names
    model = keras.saving.load_model(arguments.model, compile=False)
    check_model_fits(parser, arguments, model, folders)
    if model.class_names and tuple(model.class_names) != names:
        print(
            f"The classes of the data are not those of the model ({', '.join(model.class_names)}), and are "
            f"matched by their order: {', '.join(names)}",
            file=sys.stderr,
        )
    with explain_faults(arguments.data, "finetune_segmentation.py"):
        counts = {split: folder.check() for split, folder in folders.items()}
    print(format_class_counts(counts, names, "pixels"), flush=True)
    segmenter = make_segmenter(model, arguments)
    output = open_evaluation(arguments)
    for split, folder in folders.items():
        print(f"\n{split}: {len(folder):,} pictures", flush=True)
        about = {"model": arguments.model, "data": arguments.data, "split": split, **list_views(arguments)}
        score_split(segmenter, folder, output / split, about, arguments.bands)
    print(f"Scores and pictures are in {output}")


def open_data(arguments):
    """Returns split -> pictures to score."""
    if arguments.val_share:
        return {"held-out": hold_out(arguments)[0][1]}
    return {split: open_split(arguments, split) for split in arguments.splits}


def check_model_fits(parser, arguments, model, folders):
    """Ends the program unless the model is a segmenter of the data's classes and channels."""
    num_classes = next(iter(folders.values())).num_classes
    if not hasattr(model, "segment") or model.num_classes != num_classes:
        parser.error(
            f"the model must be a semantic segmenter of the {num_classes} classes of "
            f"{arguments.data}. Received: {arguments.model}, {getattr(model, 'num_classes', 'no')} classes"
        )
    for split, folder in folders.items():
        if folder.num_channels != model.image_channels:
            wanted = f"the {folder.num_channels} channels of {arguments.data}, {split}"
            received = f"{arguments.model}, {model.image_channels} channels"
            parser.error(f"the model must take pictures of {wanted}. Received: {received}")
    tell_channels(parser, model.image_channels, arguments.bands)


def make_segmenter(model, arguments):
    """Returns what gives label maps as predict_segmentation.py does."""

    def segment(images):
        return np.stack([segment_picture(model, image, arguments, progress=False) for image in images])

    return types.SimpleNamespace(predict_on_batch=segment, num_classes=model.num_classes)


def score_split(segmenter, folder, output, about, bands=None):
    """Prints and keeps the scores of a split; draws the confusion matrix and some pictures."""
    scores = evaluate_semantic(segmenter, semantic_evaluation_batches(folder), progress=True)
    table = format_semantic_scores(scores, folder.class_names)
    mistakes = list_mistakes(scores["confusion"], folder.class_names)
    table = "\n".join([table, *mistakes])
    print(table, flush=True)
    keep_scores(output, scores, table, folder.class_names, **about)
    picture = draw_confusion(scores["confusion"], folder.class_names, in_percent=True)
    save_picture(picture, output / "confusion.png")
    pages = {"predictions.png": range(NUM_PICTURES)}
    if worst := find_worst(1 - scores["per_picture_iou"], NUM_PICTURES):
        pages["worst.png"] = worst
    for name, positions in pages.items():
        save_picture(compare(segmenter, take_examples(folder, positions), bands), output / name)
    keep_report(output)


def list_mistakes(confusion, class_names, most=5):
    """Returns a line for each of the most frequent mistakes, as shares of the pixels of the true class."""
    wrong, lines = confusion - np.diag(np.diag(confusion)), []
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:most]:
        truth, guess = np.unravel_index(cell, wrong.shape)
        if wrong[truth, guess]:
            share = wrong[truth, guess] / confusion[truth].sum()
            lines.append(f"  {class_names[truth]} taken for {class_names[guess]}: {share:.1%}")
    return ["most frequent mistakes", *lines] if lines else []


if __name__ == "__main__":
    main()
