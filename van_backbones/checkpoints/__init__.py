"""Weights from files, releases and arrays into models, and back.

`python -m van_backbones.checkpoints --help` does the same from the command line.
"""

from van_backbones.checkpoints.loading import load_checkpoint, load_state_dict, save_state_dict, to_state_dict
from van_backbones.checkpoints.releases import RELEASES, SHORTHANDS, DownloadError

__all__ = [
    "RELEASES",
    "SHORTHANDS",
    "DownloadError",
    "load_checkpoint",
    "load_state_dict",
    "save_state_dict",
    "to_state_dict",
]
