"""What is wrong with a script's data, in words that help."""

import contextlib
import pathlib

# Script -> what a folder with its data holds.
DATA_OF_SCRIPTS = {
    "finetune_segmentation.py": ("labels/*/*.png", "annotations/*/*.png"),
    "train_saliency.py": ("masks/*/*.png",),
    "train_detection.py": ("annotations/instances_*.json",),
    "train_pose.py": ("annotations/person_keypoints_*.json",),
    "train_panoptic.py": ("annotations/panoptic_*.json",),
    "finetune_classification.py": ("*/*.jpg", "*/*.jpeg", "*/*.png", "train/*/*.jpg", "train/*/*.png"),
}


@contextlib.contextmanager
def explain_faults(data, script: str):
    """Ends a script with a message, without a traceback, if its data cannot be used.

    Args:
        data: The folder, or None for embedded data.
        script: File name of the script that reads it.

    Raises:
        SystemExit: If there is no such folder, or at a ValueError within the block. It names the scripts
            whose data the folder seems to hold.
    """
    if data is not None and not pathlib.Path(data).is_dir():
        is_what = "is a file" if pathlib.Path(data).is_file() else "does not exist"
        raise SystemExit(f"\n--data must be a folder. Received: {data}, which {is_what}")
    try:
        yield
    except ValueError as error:
        raise SystemExit(f"\n{error}{suggest_script(data, script)}") from error
    except ImportError as error:  # of a library that reads the data and is not installed
        raise SystemExit(f"\n{error}") from error


def suggest_script(data, script):
    """Returns a line that names the scripts whose data a folder holds; nothing if this one is among them."""
    if data is None:
        return ""
    fitting = [
        name
        for name, patterns in DATA_OF_SCRIPTS.items()
        if any(next(pathlib.Path(data).glob(pattern), None) for pattern in patterns)
    ]
    if not fitting or script in fitting:
        return ""
    return f"\nThe folder looks like data for {' or '.join(fitting)}"
