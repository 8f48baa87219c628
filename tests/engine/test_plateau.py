import numpy as np
import pytest

from cervseg_jax.engine.plateau import BestState, PlateauState, stops_early, update_best, update_plateau

RULES = {"factor": 0.3, "patience": 4, "min_delta": 1e-4, "min_learning_rate": 0.0}


def replay(losses, rate, rules, *, stop_after=10):
    """Learning rate in force in each epoch, and the number of epochs until the stop."""
    state, best, rates = PlateauState(rate), BestState(), []
    for epoch, loss in enumerate(losses, start=1):
        rates.append(state.learning_rate)
        state, best = update_plateau(state, loss, **rules), update_best(best, loss, epoch)
        if stops_early(best, epoch, stop_after):
            break
    return rates, best


def test_replay_of_the_published_run():
    """Seventy-one epochs whose improvements lie where the published learning rates put them."""
    improvements = [*range(30), 36, 41, 47, 50, 55, 60]
    losses, loss = [], 0.5
    for epoch in range(100):
        if epoch in improvements:
            loss -= 0.005
        losses.append(loss if epoch in improvements else loss + 5e-5)
    rates, best = replay(losses, 7e-5, RULES)
    assert len(rates) == 71
    assert best.epoch - 1 == 60
    drops = [epoch for epoch in range(1, 71) if rates[epoch] < rates[epoch - 1]]
    assert drops == [34, 41, 46, 55, 60, 65, 69]
    np.testing.assert_allclose([rates[epoch] for epoch in drops], 7e-5 * 0.3 ** np.arange(1, 8), rtol=1e-12)
    assert f"{rates[-1]:.4e}" == "1.5309e-08"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside Keras
@pytest.mark.parametrize("seed", range(30))
def test_equal_to_keras_callbacks(seed):
    """The same series through Keras' own callbacks."""
    import keras

    rng = np.random.default_rng(seed)
    losses = list(np.round(1 + np.cumsum(rng.normal(-0.002, 0.02, 60)), int(rng.integers(2, 6))))
    rules = {
        "factor": float(rng.uniform(0.1, 0.9)),
        "patience": int(rng.integers(1, 7)),
        "min_delta": float(rng.choice([0.0, 1e-4, 1e-2])),
        "min_learning_rate": float(rng.choice([0.0, 1e-3])),
    }
    patience = int(rng.integers(2, 12))

    class Stub:
        optimizer = keras.optimizers.SGD(0.1)
        stop_training = False

    reducer = keras.callbacks.ReduceLROnPlateau(
        "val_loss",
        factor=rules["factor"],
        patience=rules["patience"],
        min_delta=rules["min_delta"],
        min_lr=rules["min_learning_rate"],
    )
    stopper = keras.callbacks.EarlyStopping("val_loss", patience=patience)
    stub = Stub()
    wanted = []
    for callback in (reducer, stopper):
        callback.set_model(stub)
        callback.on_train_begin()
    for epoch, loss in enumerate(losses):
        wanted.append(float(np.asarray(stub.optimizer.learning_rate.value)))
        for callback in (reducer, stopper):
            callback.on_epoch_end(epoch, {"val_loss": loss})
        if stub.stop_training:
            break
    rates, best = replay(losses, 0.1, rules, stop_after=patience)
    np.testing.assert_allclose(rates, wanted, rtol=1e-5)
    assert best.epoch - 1 == int(np.argmin(losses[: len(rates)]))


def test_no_patience_never_stops():
    assert not stops_early(BestState(0.1, 1), 1000, None)
