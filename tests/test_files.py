import os
import subprocess
import sys
import time

import pytest

from cervseg_jax.errors import CheckpointError, DataError
from cervseg_jax.files import (
    ABANDONED_SECONDS,
    TEMPORARY_PREFIX,
    read_json_object,
    remove_stale_temporaries,
    temporary_name,
    write_bytes,
    write_json,
    write_text,
)


def test_names_of_the_longest_length_can_be_written(tmp_path):
    path = tmp_path / ("a" * 245)
    write_bytes(path, b"x")
    assert path.read_bytes() == b"x" and list(tmp_path.iterdir()) == [path]
    assert len(temporary_name("work")) < 90


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    code = """
import sys, os
from pathlib import Path
from cervseg_jax.files import temporary_name
out = Path(sys.argv[1])
(out / "masks").mkdir()
(out / temporary_name()).write_bytes(b"half")
(out / "masks" / temporary_name()).write_bytes(b"half")
work = out / (temporary_name("work") + "abc_1")
work.mkdir()
(work / "maps.npy").write_bytes(b"half")
os._exit(9)
"""
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    own = tmp_path / temporary_name()
    own.write_bytes(b"of a thread that still writes")
    running = tmp_path / temporary_name().replace(f"-{os.getpid()}-", f"-{os.getppid()}-")
    running.write_bytes(b"of another process")
    users = tmp_path / ".cervseg-notes.txt"
    users.write_text("mine")
    assert len(list(tmp_path.rglob(".cervseg-*"))) == 6
    assert remove_stale_temporaries(tmp_path) == 3
    assert set(tmp_path.rglob(".cervseg-*")) == {own, running, users}
    assert remove_stale_temporaries(tmp_path / "missing") == 0


def test_temporaries_of_an_earlier_process_of_the_same_number_are_stale(tmp_path):
    machine, pid, *_ = temporary_name().removeprefix(TEMPORARY_PREFIX).split("-")
    (tmp_path / f"{TEMPORARY_PREFIX}{machine}-{pid}-1-2-3.tmp").write_bytes(b"")  # containers count from 1 again
    assert remove_stale_temporaries(tmp_path) == 1


def test_temporaries_of_other_machines_are_kept_for_a_day(tmp_path):
    path = tmp_path / f"{TEMPORARY_PREFIX}0123abcd-{2**22}-1-2-3.tmp"
    path.write_bytes(b"half")
    assert remove_stale_temporaries(tmp_path) == 0
    os.utime(path, (time.time() - ABANDONED_SECONDS - 60,) * 2)
    assert remove_stale_temporaries(tmp_path) == 1


def test_a_failed_write_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match=r"."):
        write_bytes(tmp_path / "a", b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path):
    def pieces():
        yield "a"
        raise OSError(28, "No space left on device")  # as a write does, without a name

    with pytest.raises(OSError, match="No space left on device") as caught:
        write_text(tmp_path / "a.txt", pieces())
    assert caught.value.filename == str(tmp_path / "a.txt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "\0\0", "\xff", "[" * 100_000])
def test_damaged_json_is_an_error_of_the_given_class(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"a\.json: is damaged"):
        read_json_object(tmp_path / "a.json", error=CheckpointError)


def test_json_objects_come_back_as_they_were_written(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, float("nan")]})
    assert read_json_object(tmp_path / "a.json") == {"a": [1, None]}
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_json_object(tmp_path / "b.json")
