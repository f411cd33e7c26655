import keras
import numpy as np
import pytest

from van_backbones import VANBackbone


def build_small():
    return VANBackbone("b0", widths=(8, 8, 16, 16), depths=(1, 1, 1, 1))


def test_frozen_stages_and_batch_norms_stay_so(tmp_path):
    backbone = build_small()
    backbone.freeze(num_stages=2, batch_norms=True)
    backbone.save(tmp_path / "backbone.keras")
    for each in (backbone, keras.saving.load_model(tmp_path / "backbone.keras")):
        paths = [variable.path for variable in each.trainable_variables]
        assert paths
        assert not any("stage1_" in path or "stage2_" in path for path in paths)
        assert not any("gamma" in path and "_block" in path for path in paths)
        assert any("stage3_norm" in path for path in paths)  # a layer norm
        statistics = {v.path: v.numpy() for v in each.variables if "moving_" in v.path}
        each(np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)), training=True)
        for variable in each.variables:
            if variable.path in statistics:
                np.testing.assert_array_equal(variable, statistics[variable.path])
    backbone.freeze()
    assert len(backbone.trainable_variables) == len(build_small().trainable_variables)


def test_freezing_another_number_of_stages_raises():
    with pytest.raises(ValueError, match=r"num_stages must be 0 .. 4\. Received: 5"):
        build_small().freeze(num_stages=5)
