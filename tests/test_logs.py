import csv
import io

import keras
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from heads.training.logs import PictureLog, format_log


def test_each_epoch_is_a_row_of_all_columns():
    rows = [{"epoch": 0, "loss": 2.0}, {"epoch": 1, "loss": 1.0, "val_score": 0.5}]
    found = list(csv.DictReader(io.StringIO(format_log(rows))))
    assert found == [
        {"epoch": "0", "loss": "2.0", "val_score": "nan"},
        {"epoch": "1", "loss": "1.0", "val_score": "0.5"},
    ]
    assert format_log([]) == ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_a_picture_of_each_epoch(tmp_path):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    seen = []

    def draw(given):
        seen.append(given)
        return np.full((20, 30, 3), (len(seen), 200, 30), "uint8")

    log = PictureLog(tmp_path, draw)
    log.set_model(model)
    for epoch in (4, 5):
        log.on_epoch_end(epoch, {})
    assert seen == [model, model]
    events = EventAccumulator(str(tmp_path / "tensorboard" / "pictures"))
    events.Reload()
    pictures = sorted(events.Images("held-out pictures"), key=lambda event: event.step)
    assert [(event.step, event.height, event.width) for event in pictures] == [(4, 20, 30), (5, 20, 30)]
    for number, event in enumerate(pictures, 1):
        pixels = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
        assert (pixels == (number, 200, 30)).all()
