"""Cross-validates the confidence of nuclei by source, on annotated images that a run has not seen.

    python scripts/benchmark_confidence.py RUN IMAGES [--folds 5] [--repeats 10]

IMAGES is a folder of a dataset, such as `DATASET/test`. The nuclei of each image are found and judged once; then the
model is fitted on all sources but those of a fold and applied to these. Printed are the calibration error over the
nuclei of all folds, and the share of true outlines within the margin: means over divisions into folds, with their
standard deviation. The last line is the model of the run itself, which was fitted on its validation images.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

import cervseg_jax
from cervseg_jax.data.pairs import find_pairs
from cervseg_jax.data.samples import whole_truth
from cervseg_jax.errors import ConfigError
from cervseg_jax.evaluation.confidence import reliability_of
from cervseg_jax.schema import DataConfig
from cervseg_jax.segmentation.calibration import Judged, fit_confidence, join_judged
from cervseg_jax.segmentation.confidence import Confidence, load_confidence
from cervseg_jax.segmentation.tuning import judge_result, predict_pairs


def judge_images(run: Path, images: Path) -> tuple[list[Judged], list[str]]:
    """Finds and judges the nuclei of each image; returns them with the source of each image."""
    pairs = find_pairs(DataConfig(root=images), whole=True)[0]["test"]
    results = predict_pairs(replace(cervseg_jax.load(run), min_probability=0.0), pairs)  # also improbable nuclei
    judged = [
        judge_result(result, list(whole_truth(pair, result.maps.shape[:2]).values()))
        for pair, result in zip(pairs, results, strict=True)
    ]
    return judged, [pair.group for pair in pairs]


def apply(confidence: Confidence | None, judged: Judged) -> tuple[np.ndarray, np.ndarray]:
    """Returns the probability of each nucleus, and of each that is right whether its outline is within the margin."""
    if confidence is None:
        raise ConfigError("too few nuclei to fit the confidence")
    deviations = judged.deviations[judged.is_matched]
    return confidence.probabilities(judged.features), deviations <= confidence.margin


def cross_validate(parts: Sequence[Judged], sources: Sequence[str], *, folds: int, seed: int) -> tuple[float, float]:
    """Returns calibration error and coverage over the nuclei of all folds."""
    names = sorted(set(sources))
    fold_of = dict(zip(np.random.default_rng(seed).permutation(names).tolist(), range(len(names)), strict=True))
    found = []
    for fold in range(folds):
        is_held_out = [fold_of[source] % folds == fold for source in sources]
        kept = [part for part, out in zip(parts, is_held_out, strict=True) if not out]
        held_out = join_judged([part for part, out in zip(parts, is_held_out, strict=True) if out])
        found.append((*apply(fit_confidence(join_judged(kept), num_images=len(kept)), held_out), held_out.is_matched))
    probs, is_within, is_right = (np.concatenate(columns) for columns in zip(*found, strict=True))
    return reliability_of(probs, is_right)["error"], float(is_within.mean())


def main(arguments: Sequence[str] | None = None) -> None:
    """Finds the nuclei and prints both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args(arguments)
    parts, sources = judge_images(options.run, options.images)
    every = join_judged(parts)
    print(f"{len(parts)} images of {len(set(sources))} sources, {len(every.is_matched)} nuclei, ", end="")
    print(f"{int(every.is_matched.sum())} right")
    scores = np.array(
        [cross_validate(parts, sources, folds=options.folds, seed=seed) for seed in range(options.repeats)]
    )
    (error, coverage), (error_std, coverage_std) = scores.mean(axis=0), scores.std(axis=0)
    print(f"cross-validated: error {error:.3f} +- {error_std:.3f}, coverage {coverage:.3f} +- {coverage_std:.3f}")
    probs, is_within = apply(load_confidence(options.run / "best"), every)
    error = reliability_of(probs, every.is_matched)["error"]
    print(f"of the run:      error {error:.3f}, coverage {is_within.mean():.3f}")


if __name__ == "__main__":
    main()
