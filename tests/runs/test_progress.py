"""Numbers of checkpoints."""

import pytest

from cervseg_jax.engine.plateau import PlateauState
from cervseg_jax.engine.scores import Scores
from cervseg_jax.runs.progress import Phase, Progress, checkpoint_number


def progress_with(num_images):
    """A progress after one epoch and some images of the next."""
    row = {"loss_sum": 0.0, "dice_coef_sum": 0.0, "num_batches": 1}
    scores = Scores.from_json({**row, "image_ids": list(range(num_images)), "counts": [[1, 1, 1, 1]] * num_images})
    return Progress(PlateauState(0.1), history=[{"epoch": 1, "step": 5}], scores=scores)


def test_the_phase_follows_from_what_is_stored():
    for progress, phase in ((progress_with(0), Phase.EPOCH_END), (progress_with(4), Phase.TRAINING)):
        assert progress.phase == phase
        assert Progress.from_json(progress.to_json()).phase == phase


def test_numbers_grow_with_step_and_phase():
    numbers = [checkpoint_number(step, phase) for step in range(1, 50) for phase in Phase]
    assert numbers == sorted(set(numbers))


@pytest.mark.parametrize("steps_per_epoch", [1, 2, 7])
def test_a_run_with_the_old_numbers_goes_on_with_larger_ones(steps_per_epoch):
    """Old numbers are steps plus finished epochs."""
    for step in range(1, 30):
        old = step + step // steps_per_epoch
        later = [checkpoint_number(later, phase) for later in range(step + 1, 40) for phase in Phase]
        assert min(later) > old
        assert checkpoint_number(step, Phase.TRAINING) >= old  # equal for the same state alone
