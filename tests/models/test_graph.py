"""The stages that the picture of a network shows."""

import pytest

from cervseg_jax.models import MODELS, build_model
from cervseg_jax.models.graph import stages_of

SIZE = (64, 64)


def test_the_encoder_of_a_network_is_a_stage_per_level():
    stages = stages_of(build_model("deeplab_v3plus", image_size=SIZE, args={}))
    nested = [stage for stage in stages if stage.num_layers == 0]
    assert [stage.size for stage in nested] == [(32, 32), (16, 16), (8, 8), (4, 4), (4, 4)]
    assert [stage.channels for stage in nested] == [64, 256, 512, 1024, 2048]
    last = stages.index(nested[-1])
    assert sum(last in stage.feeds for stage in stages) >= 3  # the pyramid's branches


@pytest.mark.parametrize("name", ["unet", "multires_unet", "swin_unet", "unet3plus", "xception_like_unet"])
def test_every_stage_is_read_and_the_last_has_the_images_size(name):
    assert name in MODELS
    model = build_model(name, image_size=SIZE, args={})
    stages = stages_of(model)
    assert sum(stage.num_layers for stage in stages) == len(model.operations)
    assert stages[0].feeds == ()
    assert all(stage.feeds and max(stage.feeds) < number for number, stage in enumerate(stages) if number)
    read = {source for stage in stages for source in stage.feeds}
    unread = [stage for number, stage in enumerate(stages) if number not in read]
    assert all(stage.size == SIZE and stage.channels == 1 for stage in unread)
    assert len(unread) <= len(model.outputs)
