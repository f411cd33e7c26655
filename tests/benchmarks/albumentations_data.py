"""The pipelines that `tests.benchmarks.data` compares with: albumentations in PyTorch's DataLoader.

They do the same as ours: a JPEG is read (by OpenCV), the picture scaled, cropped and mirrored, its colours
changed half of the time; batches are float32. Needs `pip install albumentations`, which we do not depend on.
"""

import json

import numpy as np
import torch

SHORT_SIDES = list(range(480, 801, 32))
MULTIPLE = 32
MEAN_GREY = (124, 116, 104)


class SemanticCrops(torch.utils.data.Dataset):
    """Crops of 512 x 512 with label maps; endless for the purposes of a benchmark."""

    def __init__(self, folder):
        import albumentations

        self.images = sorted((folder / "images/train").iterdir())
        self.labels = folder / "labels/train"
        self.move = albumentations.Compose(
            [
                albumentations.RandomScale(scale_limit=(-0.5, 1.0), p=1),
                albumentations.PadIfNeeded(
                    512, 512, position="top_left", fill=(124, 116, 104), fill_mask=255
                ),
                albumentations.RandomCrop(512, 512),
                albumentations.HorizontalFlip(p=0.5),
                *distort_colours(albumentations),
            ]
        )

    def __len__(self):
        return 1_000_000

    def __getitem__(self, index):
        import cv2

        path = self.images[index % len(self.images)]
        label = cv2.imread(str(self.labels / f"{path.stem}.png"), cv2.IMREAD_GRAYSCALE)
        moved = self.move(image=read_picture(path), mask=label)
        return moved["image"].astype("float32"), moved["mask"].astype("int32")


class Boxes(torch.utils.data.Dataset):
    """Pictures with boxes, the short side 480 .. 800."""

    def __init__(self, folder):
        import albumentations

        content = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
        self.images = [
            (folder / "images/train" / image["file_name"], image["id"]) for image in content["images"]
        ]
        self.boxes = {number: [] for _, number in self.images}
        for annotation in content["annotations"]:
            left, top, width, height = annotation["bbox"]
            box = (left, top, left + width, top + height)
            self.boxes[annotation["image_id"]].append((*box, annotation["category_id"] - 1))
        self.move = albumentations.Compose(
            [
                albumentations.SmallestMaxSize(max_size=SHORT_SIDES),
                albumentations.HorizontalFlip(p=0.5),
            ],
            bbox_params=albumentations.BboxParams(format="pascal_voc"),
        )

    def __len__(self):
        return 1_000_000

    def __getitem__(self, index):
        path, number = self.images[index % len(self.images)]
        moved = self.move(image=read_picture(path), bboxes=self.boxes[number])
        return moved["image"].astype("float32"), np.array(moved["bboxes"], "float32").reshape(-1, 5)


def distort_colours(albumentations):
    """Returns mmsegmentation's distortion, in which each of the four changes is applied half of the time."""
    return [
        albumentations.RandomBrightnessContrast(brightness_limit=32 / 255, contrast_limit=0, p=0.5),
        albumentations.RandomBrightnessContrast(brightness_limit=0, contrast_limit=0.5, p=0.5),
        albumentations.HueSaturationValue(hue_shift_limit=0, sat_shift_limit=64, val_shift_limit=0, p=0.5),
        albumentations.HueSaturationValue(hue_shift_limit=9, sat_shift_limit=0, val_shift_limit=0, p=0.5),
    ]


def read_picture(path):
    import cv2

    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def join_boxes(samples):
    """Returns a batch of pictures, padded to sides that are multiples of 32, and of boxes."""
    images, boxes = zip(*samples, strict=True)
    sides = np.max([image.shape[:2] for image in images], axis=0)
    height, width = -(-sides // MULTIPLE) * MULTIPLE
    batch = np.empty((len(images), height, width, 3), "float32")
    batch[:] = MEAN_GREY
    rows = np.full((len(images), max(map(len, boxes)), 5), -1, "float32")
    for index, (image, own) in enumerate(samples):
        batch[index, : image.shape[0], : image.shape[1]] = image
        rows[index, : len(own)] = own
    return torch.from_numpy(batch), torch.from_numpy(rows)


def start_worker(_):
    """Keeps a worker on one core, so that the other worker has the other one."""
    import cv2

    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def build_loaders(folder, batch_size, num_workers):
    """Returns name -> DataLoader, whose workers stay between its iterators."""
    options = {
        "batch_size": batch_size,
        "num_workers": num_workers,
        "persistent_workers": True,
        "multiprocessing_context": "spawn",  # a fork would copy TensorFlow's threads incompletely
        "worker_init_fn": start_worker,
    }
    return {
        "albumentations, crops of 512 x 512": torch.utils.data.DataLoader(SemanticCrops(folder), **options),
        "albumentations, boxes, short side 480 .. 800": torch.utils.data.DataLoader(
            Boxes(folder), collate_fn=join_boxes, **options
        ),
    }
