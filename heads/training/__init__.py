"""What a training script needs around `fit`: a folder of its own, a run that goes on after a kill."""

from heads.training.callbacks import StepTimer, StopOnNonFinite
from heads.training.files import RunError, hold_folder, replace_file, replace_text, save_model
from heads.training.folders import find_newest_run, make_numbered_folder
from heads.training.run import TrainingRun, plan_rounds, run_in_folder
from heads.training.signals import interrupt_on_signals

__all__ = [
    "RunError",
    "StepTimer",
    "StopOnNonFinite",
    "TrainingRun",
    "find_newest_run",
    "hold_folder",
    "interrupt_on_signals",
    "make_numbered_folder",
    "plan_rounds",
    "replace_file",
    "replace_text",
    "run_in_folder",
    "save_model",
]
