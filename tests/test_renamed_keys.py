"""Configs of the first release: read under new names, and with the label maps that they gave."""

import logging

import pytest
import yaml

from cervseg_jax.config import dump_config, load_config
from tests.helpers import TINY_CONFIG

OLD_DEFAULTS = {
    "eval": {"batch_size": 4, "threshold": 0.5, "num_example_images": 4},
    "infer": {
        "batch_size": 4,
        "threshold": 0.5,
        "num_infer_images": 6,
        "threshold_rule": "fixed",
        "tiled": None,
        "test_time_augmentation": False,
        "colours": ["black", "white"],
        "separation": None,
    },
}
"""These sections as every run folder of the first release stores them."""


def load(tmp_path, sections, overrides=()):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(TINY_CONFIG) | sections))
    return load_config(path, overrides)


def test_stored_defaults_do_not_replace_the_tuned_threshold(tmp_path):
    config = load(tmp_path, OLD_DEFAULTS)
    assert config.infer.threshold is None
    assert config.infer.postprocessing is None
    assert config.infer.colors == ("black", "white")


@pytest.mark.parametrize(
    ("evaluation", "infer", "separation", "expected"),
    [
        (0.3, 0.5, None, 0.3),
        (0.5, 0.4, None, 0.4),
        (0.3, 0.4, None, 0.4),
        (0.5, 0.5, 0.5, 0.5),
        (0.5, 0.4, 0.6, 0.6),
    ],
)
def test_thresholds_that_were_set_are_kept_the_one_of_label_maps_first(
    tmp_path, evaluation, infer, separation, expected
):
    sections = {
        "eval": OLD_DEFAULTS["eval"] | {"threshold": evaluation},
        "infer": OLD_DEFAULTS["infer"] | {"threshold": infer},
    }
    if separation is not None:
        sections["infer"]["separation"] = {"threshold": separation, "min_depth": 0.1, "min_area_px": 5}
    config = load(tmp_path, sections)
    assert config.infer.threshold == expected
    if separation is not None:
        assert config.infer.postprocessing.min_saddle_depth == 0.1
        assert config.infer.postprocessing.min_area_px == 5


def test_a_half_in_a_new_config_is_a_setting(tmp_path):
    assert load(tmp_path, {"infer": {"threshold": 0.5}}).infer.threshold == 0.5


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("eval.threshold=0.3", "threshold", 0.3),
        ("eval.threshold=0.5", "threshold", 0.5),
        ("infer.separation={threshold: 0.4, min_depth: 0.05}", "threshold", 0.4),
        ("infer.separation.threshold=0.4", "threshold", 0.4),
        ("infer.colours=[red, blue]", "colors", ("red", "blue")),
    ],
)
def test_old_names_on_the_command_line_win_over_the_file(tmp_path, caplog, override, key, value):
    """Also over new names in the file, as any override does."""
    stored = tmp_path / "stored.yaml"
    stored.write_text(dump_config(load(tmp_path, {"infer": {"threshold": 0.7}})))
    with caplog.at_level(logging.WARNING, logger="cervseg_jax"):
        config = load_config(stored, [override])
    assert getattr(config.infer, key) == value
    assert len(caplog.records) == 1
    assert "is now infer." in caplog.text
    if "min_depth" in override:
        assert config.infer.postprocessing.min_saddle_depth == 0.05


def test_other_old_names_on_the_command_line(tmp_path):
    stored = tmp_path / "stored.yaml"
    stored.write_text(dump_config(load(tmp_path, {})))
    assert load_config(stored, ["train.accumulate=2"]).train.grad_accum_steps == 2
    assert load_config(stored, ["infer.separation.min_depth=0.3"]).infer.postprocessing.min_saddle_depth == 0.3
