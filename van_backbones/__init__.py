"""The Visual Attention Network (arXiv 2202.09741) as a feature-pyramid backbone for Keras 3."""

import sys

from van_backbones.before_keras import is_starting, load_keras, parse_checkpoint_command

if is_starting("van_backbones.checkpoints"):  # Python imports the package before the module in it
    parse_checkpoint_command(sys.argv[1:])
    load_keras()

from van_backbones.backbone import VANBackbone
from van_backbones.checkpoints.loading import load_checkpoint
from van_backbones.classifier import VANClassifier
from van_backbones.deployment import deploy
from van_backbones.exporting import export
from van_backbones.pretrained import load_release
from van_backbones.variants import VARIANTS, Variant

__all__ = [
    "VARIANTS",
    "VANBackbone",
    "VANClassifier",
    "Variant",
    "deploy",
    "export",
    "load_checkpoint",
    "load_release",
]
__version__ = "0.1.0"
