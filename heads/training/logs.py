"""The log of a run: a table of its epochs, and the files for TensorBoard."""

import atexit
import csv
import io
import pathlib
import shutil
import tempfile
import time

import keras
from PIL import Image

from heads.processes import is_first_process, on_this_process


def format_log(rows: list[dict]) -> str:
    """Returns the epochs of a run as CSV; missing numbers of an epoch are NaN."""
    text = io.StringIO()
    columns = dict.fromkeys(name for row in rows for name in row)
    writer = csv.DictWriter(text, columns, restval="nan")
    if rows:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def make_loggers(folder):
    """Returns the callbacks that write further logs into the folder of a run."""
    if not is_first_process():
        # Nobody reads these logs, but all processes must compute what the first one computes for them.
        folder = pathlib.Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return [keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)]


class PictureLog(keras.callbacks.Callback):
    """Writes a picture of what the model sees after each epoch, for TensorBoard.

    Put it between the callbacks that score and `TrainingRun`, where averages of the weights are in the model.

    Args:
        folder: Folder of the run; the files go into its `tensorboard/pictures`.
        draw: Function `(model)` that returns a picture, uint8 (height, width, 3).
    """

    def __init__(self, folder, draw):
        super().__init__()
        self.folder = pathlib.Path(folder) / "tensorboard" / "pictures"
        self.draw = draw

    def on_epoch_end(self, epoch, logs=None):
        if not is_first_process():
            return
        # TensorBoard's own writer, which needs no TensorFlow; it is loaded where it is used.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        with on_this_process(self.model) as model:
            picture = Image.fromarray(self.draw(model))
        content = io.BytesIO()
        picture.save(content, "PNG")
        image = Summary.Image(
            height=picture.height,
            width=picture.width,
            colorspace=3,
            encoded_image_string=content.getvalue(),
        )
        summary = Summary(value=[Summary.Value(tag="held-out pictures", image=image)])
        writer = EventFileWriter(str(self.folder))
        writer.add_event(Event(wall_time=time.time(), step=epoch, summary=summary))
        writer.close()
