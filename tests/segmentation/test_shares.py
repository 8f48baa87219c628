"""Shards and shares: every image belongs to exactly one."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from cervseg_jax.segmentation import shares
from cervseg_jax.segmentation.jobs import Job, plan_jobs
from cervseg_jax.segmentation.shares import Shard, divide, of_shard


def jobs_of(count, folder="in"):
    return [Job(Path(f"/{folder}/image_{number}.png"), f"image_{number}") for number in range(count)]


@pytest.mark.parametrize("total", [1, 3, 16, 300])
def test_shards_are_disjoint_and_complete(total):
    jobs = jobs_of(200)
    parts = [of_shard(jobs, Shard(number, total)) for number in range(1, total + 1)]
    assert sorted(job for part in parts for job in part) == sorted(jobs)
    assert all(part == sorted(part, key=jobs.index) for part in parts)
    assert of_shard(jobs, None) == jobs


def test_an_image_stays_in_its_shard_whatever_else_there_is():
    few, many = jobs_of(10, folder="elsewhere"), jobs_of(100)
    for number in range(1, 5):
        names = {job.name for job in of_shard(many, Shard(number, 4))}
        assert {job.name for job in of_shard(few, Shard(number, 4))} == names & {job.name for job in few}


@pytest.mark.parametrize(("num_slides", "is_tiled"), [(0, True), (2, True), (3, True), (2, False)])
def test_processes_divide_what_is_left_and_tiles_if_slides_are_few(tmp_path, monkeypatch, num_slides, is_tiled):
    for number in range(num_slides):
        tifffile.imwrite(tmp_path / f"s{number}.tif", np.zeros((8, 8, 3), np.uint8), bigtiff=True, photometric="rgb")
    for number in range(7):
        (tmp_path / f"{number}.png").touch()
    (tmp_path / "broken.tif").write_bytes(b"II*\0nonsense")
    jobs = plan_jobs([tmp_path])
    todo = [job for job in jobs if job.name != "3"]
    sent = []

    def broadcast(codes):
        sent.append(codes.copy())
        return sent[0]

    monkeypatch.setattr(shares, "broadcast_array", broadcast)
    found = [
        divide(jobs, todo if process == 0 else [], is_tiled=is_tiled, index=process, count=3) for process in range(3)
    ]
    assert sorted(job for share in found for job in share.jobs) == sorted(todo)
    assert max(len(share.jobs) for share in found) - min(len(share.jobs) for share in found) <= 2
    divided = [f"s{number}" for number in range(num_slides)] if is_tiled and num_slides < 3 else []
    assert all([job.name for job in share.divided] == divided for share in found)
    alone = divide(jobs, todo, is_tiled=is_tiled, index=0, count=1)
    assert (alone.jobs, alone.divided) == (todo, [])
