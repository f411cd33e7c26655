"""Models for other runtimes: written by `export`, run by `load_export`."""

from van_backbones.exporting.export import export
from van_backbones.exporting.runtimes import load_export, measure_export

__all__ = ["export", "load_export", "measure_export"]
