"""What a training script needs around `fit`: a folder of its own, and a run that resumes after a kill."""

from heads.file_writing import replace_file, replace_text
from heads.processes import is_first_process
from heads.training.averages import WeightAverages
from heads.training.callbacks import StepTimer, StopOnNonFinite
from heads.training.files import RunError, hold_folder, save_model
from heads.training.folders import find_newest_run, make_numbered_folder
from heads.training.run import TrainingRun, plan_rounds
from heads.training.signals import interrupt_on_signals
from heads.training.workers import go_on_alone, run_in_folder

__all__ = [
    "RunError",
    "StepTimer",
    "StopOnNonFinite",
    "TrainingRun",
    "WeightAverages",
    "find_newest_run",
    "go_on_alone",
    "hold_folder",
    "interrupt_on_signals",
    "is_first_process",
    "make_numbered_folder",
    "plan_rounds",
    "replace_file",
    "replace_text",
    "run_in_folder",
    "save_model",
]
