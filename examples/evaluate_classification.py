"""Scores a VAN classifier on a folder of class folders, such as ImageNet-V2 or ImageNet's validation set.

    python examples/evaluate_classification.py path/to/imagenetv2-matched-frequency --variant b1

Folders are named by the class number ("0" .. "999", ImageNet-V2) or, in the order of the classes, by anything
else (WordNet ids). Pictures are prepared as the published accuracies were measured: bicubic, crop 0.9.
"""

import argparse
import pathlib
import sys

import numpy as np
from tqdm import tqdm

from heads.data.class_folder import SUFFIXES, find_class_folders, list_pictures
from heads.pictures import read_picture
from van_backbones import VARIANTS, VANClassifier
from van_backbones.classifier import preprocess_images


def main(argv=None):
    """Runs the script; gives 1 if a picture was unreadable, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=pathlib.Path, help="folder of class folders")
    parser.add_argument("--variant", choices=list(VARIANTS), default="b0")
    parser.add_argument("--weights", default="imagenet", help="a release or a checkpoint file")
    parser.add_argument("--num-classes", type=int, default=1000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    arguments = parser.parse_args(argv)

    examples = list_examples(parser, arguments.data, arguments.num_classes)
    model = VANClassifier(arguments.variant, arguments.num_classes, weights=arguments.weights)
    ranks, unreadable = [], []
    for start in tqdm(range(0, len(examples), arguments.batch_size), unit="batch"):
        images, labels = [], []
        for path, label in examples[start : start + arguments.batch_size]:
            try:
                picture = read_picture(path)
            except ValueError as error:
                unreadable.append(error)
                continue
            images.append(preprocess_images(picture[None], arguments.image_size)[0])
            labels.append(label)
        if images:
            ranks.extend(rank_truth(model.predict_on_batch(np.stack(images)), np.array(labels)))

    if ranks:
        ranks = np.array(ranks)
        print(f"{len(ranks)} pictures: top-1 {np.mean(ranks < 1):.4f}, top-5 {np.mean(ranks < 5):.4f}")
    for problem in unreadable:
        print(f"Left out, unreadable: {problem}", file=sys.stderr)
    return 1 if unreadable else 0


def list_examples(parser, data, num_classes):
    """Returns (path, label) of all pictures; ends the program where the folders cannot be the classes."""
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
        parser.error(f"the folder {max(labels)} is no class of {num_classes}; pass --num-classes")
    examples = [
        (path, label) for folder, label in zip(folders, labels, strict=True) for path in list_pictures(folder)
    ]
    if not examples:
        parser.error(f"the folders in {data} hold no pictures ({', '.join(SUFFIXES)})")
    return examples


def rank_truth(logits, labels):
    """Returns how many classes score higher than the true one, per picture."""
    truth = np.take_along_axis(logits, labels[:, None], axis=1)
    return (logits > truth).sum(axis=1)


if __name__ == "__main__":
    sys.exit(main())
