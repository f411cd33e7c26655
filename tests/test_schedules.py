import keras
import pytest

from heads import WarmUpPolynomialDecay, WarmUpStepDecay


@pytest.mark.parametrize(("power", "warm_up"), [(0.9, 3), (1.0, 1), (0.9, 0)])
def test_polynomial_decay_by_hand(power, warm_up):
    schedule = WarmUpPolynomialDecay(0.01, warm_up, 10, power)
    for step in range(11):
        rise = min((step + 1) / warm_up, 1.0) if warm_up else 1.0
        assert float(schedule(step)) == pytest.approx(0.01 * (1 - step / 10) ** power * rise, abs=1e-9)
    assert float(schedule(10)) == 0.0
    assert float(schedule(11)) == 0.0


@pytest.mark.parametrize("warm_up", [4, 1, 0])
def test_step_decay_by_hand(warm_up):
    schedule = WarmUpStepDecay(0.01, warm_up, [6, 9])
    for step in range(12):
        expected = 0.01 * (0.001 + 0.999 * min(step / warm_up, 1) if warm_up else 1.0)
        expected *= 1 if step < 6 else 0.1 if step < 9 else 0.01
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5), step


@pytest.mark.parametrize(
    "schedule",
    [WarmUpPolynomialDecay(0.1, 3, 10, 0.9), WarmUpStepDecay(0.1, 3, [4, 6])],
    ids=lambda s: type(s).__name__,
)
def test_saved_schedules_need_no_script(schedule):
    """An optimizer's config names a class of the library by its registered name."""
    saved = keras.saving.serialize_keras_object(keras.optimizers.AdamW(schedule))
    assert "examples" not in str(saved)
    copy = keras.saving.deserialize_keras_object(saved)._learning_rate
    assert type(copy) is type(schedule)
    assert copy.get_config() == schedule.get_config()
    assert float(copy(5)) == float(schedule(5))


def test_a_rate_of_zero_stays_zero():
    assert float(WarmUpPolynomialDecay(0.0, 0, 10, 1.0)(3)) == 0.0
    assert float(WarmUpStepDecay(0.0, 2, [4])(3)) == 0.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WarmUpPolynomialDecay(-1.0, 0, 10, 1.0), "learning_rate must be at least 0. Received: -1.0"),
        (lambda: WarmUpStepDecay(float("nan"), 0, []), "learning_rate must be at least 0. Received: nan"),
        (lambda: WarmUpStepDecay(0.1, -2, []), "warm_up must be at least 0. Received: -2"),
        (lambda: WarmUpPolynomialDecay(0.1, 0, 0, 1.0), "steps must be at least 1. Received: 0"),
    ],
)
def test_schedules_refuse(build, message):
    with pytest.raises(ValueError, match=message):
        build()
