"""What a training script needs around `fit`: a run that goes on after a kill, checked options."""

from heads.training.callbacks import StepTimer, StopOnNonFinite
from heads.training.files import RunError, hold_folder, replace_file, replace_text, save_model
from heads.training.options import add_run_options, number, whole_number
from heads.training.run import TrainingRun, plan_rounds, run_in_folder
from heads.training.signals import interrupt_on_signals

__all__ = [
    "RunError",
    "StepTimer",
    "StopOnNonFinite",
    "TrainingRun",
    "add_run_options",
    "hold_folder",
    "interrupt_on_signals",
    "number",
    "plan_rounds",
    "replace_file",
    "replace_text",
    "run_in_folder",
    "save_model",
    "whole_number",
]
