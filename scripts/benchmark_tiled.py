"""Benchmark of tiled inference on a large synthetic image, beside a plain loop over tiles that only writes a mask.

With `--slide` the image is a tiled TIFF that is read window by window; the plain loop is then omitted.

Run: python scripts/benchmark_tiled.py RUN OUT [--side 10000] [--slide]
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cervseg_jax.annotations.outlines import draw_instances
from cervseg_jax.curation.synthetic import draw_scene
from cervseg_jax.files import make_folder, write_png

FIELD = 250
NUM_FIELDS = 16
OUTPUTS = "masks,instances,nuclei,geojson"
PLAIN_LOOP = """
import sys, cv2, numpy as np
from pathlib import Path
import cervseg_jax
from cervseg_jax.data.decode import read_image
run, path, out = map(Path, sys.argv[1:])
predictor = cervseg_jax.load(run).predictor
predict, batch_size = predictor.predict, predictor.batch_size
image = read_image(path)
h, w = predictor.image_size
mask = np.zeros(image.shape[:2], np.uint8)
corners = [(y, x) for y in range(0, image.shape[0] - h + 1, h) for x in range(0, image.shape[1] - w + 1, w)]
for first in range(0, len(corners), batch_size):
    chunk = corners[first : first + batch_size]
    tiles = [image[y : y + h, x : x + w] for y, x in chunk]
    probs = predict(np.stack(tiles + tiles[:1] * (batch_size - len(tiles))))
    for (y, x), tile in zip(chunk, probs):
        mask[y : y + h, x : x + w] = tile[..., 0] >= 0.5
cv2.imwrite(str(out), mask * 255)
"""


def main(arguments: Sequence[str]) -> None:
    """Generates the image, runs both, and prints and writes the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--side", type=int, default=10_000, help="side of the image in pixels")
    parser.add_argument("--slide", action="store_true", help="use a tiled TIFF; needs the extra `slides`")
    options = parser.parse_args(arguments)
    out = make_folder(options.out.absolute())
    image, num_nuclei = _draw(options.side)
    path = out / ("large.tif" if options.slide else "large.png")
    if options.slide:
        import tifffile  # pyright: ignore[reportMissingImports]

        tifffile.imwrite(path, image, tile=(256, 256), photometric="rgb", compression="deflate", bigtiff=True)
    else:
        write_png(path, image)
    del image  # frees memory before the commands are measured
    program = str(Path(sys.executable).with_name("cervseg-jax"))
    infer = [program, "infer", str(options.run), "--images", str(path), "--out", str(out / "found")]
    plain = [sys.executable, "-c", PLAIN_LOOP, str(options.run), str(path), str(out / "plain.png")]
    results = {
        "side": options.side,
        "drawn_nuclei": num_nuclei,
        "tiled": _timed([*infer, "--tiled", "--output", OUTPUTS, "--overwrite", "--quiet"]),
        "tiled_mask_only": _timed([*infer, "--tiled", "--output", "masks", "--overwrite", "--quiet"]),
    }
    if not options.slide:
        results["plain_loop"] = _timed(plain)
    with (out / "found" / "nuclei.csv").open(encoding="utf-8") as lines:
        results["found_nuclei"] = sum(1 for _ in lines) - 1
    (out / "figures.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    print(json.dumps(results, indent=2))


def _draw(side: int) -> tuple[np.ndarray, int]:
    """Returns an image of adjacent synthetic fields, and its number of nuclei."""
    fields = []
    for seed in range(NUM_FIELDS):
        scene = draw_scene(shape=(FIELD, FIELD), seed=seed)
        fields.append((scene.image, int(draw_instances(scene.outlines, shape=(FIELD, FIELD)).max())))
    image = np.zeros((side, side, 3), np.uint8)
    count = 0
    for row, top in enumerate(range(0, side, FIELD)):
        for column, left in enumerate(range(0, side, FIELD)):
            field, nuclei = fields[(row + 3 * column) % NUM_FIELDS]
            height, width = min(FIELD, side - top), min(FIELD, side - left)
            image[top : top + height, left : left + width] = field[:height, :width]
            count += nuclei
    return image, count


def _timed(command: Sequence[str]) -> dict[str, float]:
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"exit code {os.waitstatus_to_exitcode(status)}: {' '.join(command)}")
    return {"seconds": round(time.perf_counter() - start, 1), "peak_gib": round(usage.ru_maxrss / 2**20, 2)}


if __name__ == "__main__":
    main(sys.argv[1:])
