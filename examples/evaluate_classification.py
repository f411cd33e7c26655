"""Scores a VAN classifier on a folder of class folders, such as ImageNet-V2 or ImageNet's validation set.

    python examples/evaluate_classification.py --data path/to/imagenetv2-matched-frequency --variant b1

The folders' names are the classes' numbers ("0" .. "999", ImageNet-V2), or anything that sorts like the
classes (WordNet ids). Pictures are prepared as for the published accuracies: bicubic, crop 0.9. If all are
TIFF files of more than 3 channels, the model must take as many. The scores go into a new folder beside the
model's file, evaluation-1, evaluation-2 ...; for a release, into runs/.
"""

import pathlib

from options import add_variant, check_output, load_keras, make_parser, whole_number


def parse_arguments(argv=None):
    """Returns the parser, for further errors, and the settings."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--data", type=pathlib.Path, required=True, help="folder of class folders")
    splits = "folders of class folders in --data; default: none, the class folders are in --data"
    add("--splits", nargs="+", metavar="SPLIT", default=["."], help=splits)
    add_variant(parser, weights="imagenet")
    classes = "classes of the model; default: %(default)s"
    add("--num-classes", type=whole_number(1), default=1000, help=classes)
    side = "side of the squares that the model sees; default: %(default)s"
    add("--image-size", type=whole_number(32), default=224, metavar="SIDE", help=side)
    batch = "pictures per batch; default: %(default)s"
    add("--batch-size", type=whole_number(1), default=32, help=batch)
    output = "folder of the results; default: the next of evaluation-1, evaluation-2 ... beside the model"
    add("--output", type=pathlib.Path, help=output)
    arguments = parser.parse_args(argv)
    check_output(parser, arguments.output)
    return parser, arguments


if __name__ == "__main__":
    parse_arguments()  # before Keras is loaded: --help and mistakes are answered at once
    load_keras()

import sys

import numpy as np
from faults import explain_faults
from finetune_segmentation import choose_input
from results import keep_scores, open_evaluation
from tqdm import tqdm

from heads.data.class_folder import (
    SUFFIXES,
    count_class_channels,
    find_class_folders,
    list_pictures,
    read_class_picture,
)
from van_backbones import VANClassifier
from van_backbones.classifier import preprocess_images


def main(argv=None):
    """Runs the script; returns 1 if a picture was unreadable, else 0."""
    parser, arguments = parse_arguments(argv)
    examples = {
        split: list_examples(parser, arguments.data / split, arguments.num_classes)
        for split in arguments.splits
    }
    with explain_faults(None, "evaluate_classification.py"):  # of a file of --weights, or of a TIFF file
        num_channels = count_class_channels(path for rows in examples.values() for path, _ in rows)
        options = {"weights": arguments.weights, **choose_input(num_channels)}
        model = VANClassifier(arguments.variant, arguments.num_classes, **options)
    is_file = pathlib.Path(arguments.weights).is_file()
    arguments.model = pathlib.Path(arguments.weights) if is_file else pathlib.Path("runs", arguments.weights)
    output, unreadable = open_evaluation(arguments), []
    for split, rows in examples.items():
        ranks = rank_examples(model, rows, arguments, unreadable)
        if not len(ranks):
            continue
        scores = {"top_1": np.mean(ranks < 1), "top_5": np.mean(ranks < 5)}
        table = f"{len(ranks)} pictures: top-1 {scores['top_1']:.2%}, top-5 {scores['top_5']:.2%}"
        print(table)
        about = {"model": arguments.weights, "data": arguments.data / split}
        keep_scores(output / split, scores, table, **about)
    for problem in unreadable:
        print(f"Skipped, unreadable: {problem}", file=sys.stderr)
    print(f"The scores are in {output}")
    return 1 if unreadable else 0


def rank_examples(model, examples, arguments, unreadable):
    """Returns how many classes score higher than the true one, per picture; adds faults to `unreadable`."""
    ranks, num_channels = [], model.input.shape[-1]
    for start in tqdm(range(0, len(examples), arguments.batch_size), unit="batch"):
        images, labels = [], []
        for path, label in examples[start : start + arguments.batch_size]:
            try:
                picture = read_class_picture(path, num_channels)
            except ValueError as error:
                unreadable.append(error)
                continue
            images.append(preprocess_images(picture, arguments.image_size, num_channels=num_channels)[0])
            labels.append(label)
        if images:
            ranks.extend(rank_truth(model.predict_on_batch(np.stack(images)), np.array(labels)))
    return np.array(ranks)


def list_examples(parser, data, num_classes):
    """Returns (path, label) of all pictures; ends the program if the folders cannot be the classes."""
    try:
        folders = find_class_folders(data)
    except ValueError as error:
        parser.error(str(error))
    if all(folder.name.isdigit() for folder in folders):
        labels = [int(folder.name) for folder in folders]
    elif len(folders) == num_classes:
        labels = range(num_classes)
    else:
        parser.error(
            f"{data} must hold one folder per class ({num_classes}), or folders named by class numbers. "
            f"Received: {len(folders)} folders, the first is {folders[0].name!r}"
        )
    if max(labels) >= num_classes:
        wanted = f"folders must be class numbers 0 .. {num_classes - 1}, or pass --num-classes"
        parser.error(f"{wanted}. Received: {max(labels)} in {data}")
    examples = [
        (path, label) for folder, label in zip(folders, labels, strict=True) for path in list_pictures(folder)
    ]
    if not examples:
        parser.error(f"the class folders must hold pictures ({', '.join(SUFFIXES)}). Received: {data}")
    return examples


def rank_truth(logits, labels):
    """Returns how many classes score higher than the true one, per picture."""
    truth = np.take_along_axis(logits, labels[:, None], axis=1)
    return (logits > truth).sum(axis=1)


if __name__ == "__main__":
    sys.exit(main())
