"""`eval` with weights of the reference implementation gives the figures that it reported for the same images."""

import cv2
import numpy as np
import pytest

from tests.helpers import rows_of, run


def test_evaluation_csv_is_the_references(golden, tmp_path):
    folder = golden / "TensorflowUNet"
    with np.load(folder / "io.npz") as arrays, np.load(folder / "grads.npz") as reported:
        images, probs = arrays["x"], arrays["y"]
        masks, loss, dice_coef = (reported[name] for name in ("y_true", "loss", "dice_coef"))
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        cv2.imwrite(str(tmp_path / "data" / "images" / f"{number}.png"), image[..., ::-1].astype(np.uint8))
        cv2.imwrite(str(tmp_path / "data" / "masks" / f"{number}.png"), (255 * mask[..., 0]).astype(np.uint8))
    recipe, imported = tmp_path / "mine.yaml", tmp_path / "run"
    assert run("import-config", folder / "train_eval_infer.config", "-o", recipe)[0] == 0
    assert run("import-weights", folder / "weights.h5", "--config", recipe, "--out", imported)[0] == 0
    code, _, stderr = run("eval", imported, "--data", tmp_path / "data", "--set", "eval.batch_size=2")
    assert code == 0, stderr
    assert "the images that these weights were trained on are unknown" in stderr
    results = imported / "eval" / "data"
    found = dict(line.split(",") for line in (results / "evaluation.csv").read_text().splitlines())
    assert float(found["loss"]) == pytest.approx(float(loss), abs=1e-4)
    assert float(found["dice_coef"]) == pytest.approx(float(dice_coef), abs=1e-4)
    for row in rows_of(results / "per_image.csv"):
        p, y = probs[int(row["stem"])].astype(float), masks[int(row["stem"])].astype(float)
        assert float(row["soft_dice"]) == pytest.approx(2 * (p * y).sum() / (p.sum() + y.sum()), abs=1e-4)
        assert float(row["brier"]) == pytest.approx(np.mean((p - y) ** 2), abs=1e-4)
        predicted = p >= 0.5
        dice = 2 * (predicted * y).sum() / (predicted.sum() + y.sum())
        assert float(row["dice"]) == pytest.approx(dice, abs=2e-3)  # pixels at one half may fall either way
