from typing import Annotated, Literal

import pytest
from pydantic import Field

from cervseg_jax.components import bind, lookup
from cervseg_jax.errors import ConfigError


def draw(image, *, size: tuple[int, int], mode: Literal["a", "b"] = "a", rate: Annotated[float, Field(ge=0)] = 0.5):
    """A function to bind."""


def test_defaults_are_filled_in_and_lists_become_tuples():
    assert bind(draw, {"size": [2, 3], "rate": 1}, key="k", reserved=["image"]) == {
        "size": (2, 3),
        "mode": "a",
        "rate": 1.0,
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"size": [1, 2], "mod": "a"}, r"k: unknown key 'mod'; did you mean 'mode'\?"),
        ({}, "k: the key 'size' is required"),
        ({"size": [1, 2], "mode": "c"}, "k.mode: Input should be 'a' or 'b', got 'c'"),
        ({"size": [1, 2], "rate": -1}, "k.rate: Input should be greater than or equal to 0, got -1"),
        ({"size": [1, 2], "rate": "0.5"}, "k.rate: .*got '0.5'"),
        ({"size": [1, True]}, "k.size: .*got"),
        ({"size": [1, 2], "image": 3}, "k: unknown key 'image'"),
    ],
)
def test_wrong_arguments_are_refused(args, message):
    with pytest.raises(ConfigError, match=message):
        bind(draw, args, key="k", reserved=["image"])


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ConfigError, match="model.name: unknown name 'unett'; did you mean 'unet'. known: swin, unet"):
        lookup({"unet": 1, "swin": 2}, "unett", key="model.name")
