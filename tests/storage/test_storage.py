"""Files in a bucket: names, requests, faults and the cache, against a server on this machine and its real client."""

import hashlib
import http.server
import itertools
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cervseg_jax.errors import ConfigError, DataError
from cervseg_jax.extras import install_command
from cervseg_jax.storage import cache as cache_module
from cervseg_jax.storage import cached, retrying
from cervseg_jax.storage.address import Address, as_path
from cervseg_jax.storage.cache import Cache, CacheFullError, default_cache
from cervseg_jax.storage.cached import fetch_ahead, fetch_all, local_file, read_file
from cervseg_jax.storage.retrying import StoreError
from tests.helpers import ENVIRONMENT


def filled(bucket, count, *, size=1000, folder="d"):
    """Puts random files into a bucket; returns their content by name."""
    rng = np.random.default_rng(1)
    files = {f"{folder}/{number:03d}.png": rng.bytes(size) for number in range(count)}
    for name, data in files.items():
        bucket.put(name, data, {})
    return files


def requests_of(bucket):
    """Returns a list that grows with each request."""
    seen = []
    bucket.watch = lambda method, request: seen.append((method, request.split(b"\n")[0].decode()))
    return seen


def test_names_of_addresses_are_those_of_paths():
    path = as_path("gs://mine/data") / "train" / "images" / "a.b.png"
    assert isinstance(path, Address)
    assert str(path) == f"{path}" == os.fspath(path) == path.as_posix() == "gs://mine/data/train/images/a.b.png"
    assert (path.name, path.stem, path.suffix, path.parent.name) == ("a.b.png", "a.b", ".png", "images")
    assert str(path.with_name("c.png")) == "gs://mine/data/train/images/c.png"
    assert str(path.parents[2]) == "gs://mine/data"
    assert path.absolute() is path.resolve() is path
    assert str((path / "../../masks/a.png").resolve()) == "gs://mine/data/train/masks/a.png"
    assert str(path.relative_to(path.parents[1])) == "images/a.b.png"
    assert path.is_relative_to(as_path("gs://mine/data")) and not path.is_relative_to(as_path("gs://other"))
    assert as_path(Path("gs://mine/data")) == as_path("gs://mine//data/")
    assert type(as_path("data/gs")) is type(Path())
    with pytest.raises(
        ConfigError, match=r"az://mine/x: az:// addresses are not read; known are gs://, s3://, http://"
    ):
        as_path("az://mine/x")
    with pytest.raises(ConfigError, match="names no bucket"):
        as_path("gs://")


def test_a_list_is_one_request_and_a_file_another_one(store):
    files = filled(store, 20)
    seen = requests_of(store)
    paths = sorted(as_path("gs://mine/d").iterdir())
    assert [path.name for path in paths] == [name[2:] for name in files]
    assert len(seen) == 1
    assert all(path.is_file() and path.stat().st_size == 1000 for path in paths)
    for _ in range(2):  # the second time from the cache
        assert [read_file(path) for path in paths] == list(files.values())
    assert len(seen) == 21


def test_what_is_written_is_there_and_what_is_deleted_is_not(store):
    folder = as_path("gs://mine/out")
    assert not folder.exists() and not folder.is_dir()
    (folder / "a" / "x.txt").write_text("h\u00e9")
    assert folder.is_dir() and (folder / "a").is_dir() and (folder / "a" / "x.txt").is_file()
    assert (folder / "a" / "x.txt").read_text() == "h\u00e9"
    assert [path.name for path in folder.rglob("*.txt")] == ["x.txt"]
    (folder / "a" / "x.txt").unlink()
    (folder / "a" / "x.txt").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError, match="gs://mine/out/a/x.txt"):
        (folder / "a" / "x.txt").unlink()
    assert not folder.exists()


def test_all_files_below_a_folder_are_one_list(store):
    files = filled(store, 5) | filled(store, 5, folder="d/a/b") | filled(store, 1, folder="dd")
    seen = requests_of(store)
    found = as_path("gs://mine/d").files()
    assert {f"d/{path.relative_to('gs://mine/d')}" for path in found} == {name for name in files if name[:2] == "d/"}
    assert all(path.is_file() and path.stat().st_size == 1000 for path in found)
    assert len(seen) == 1
    assert as_path("gs://mine/none").files() == []
    assert list(as_path("gs://mine/none").glob("*")) == []
    assert [path.name for path in as_path("gs://mine/d").glob("00[01]*")] == ["000.png", "001.png"]
    with pytest.raises(StoreError, match="gs://other: no such bucket"):
        as_path("gs://other/d").files()
    with pytest.raises(NotADirectoryError):
        as_path("gs://mine/d/000.png").files()


def test_one_of_three_requests_fails(store):
    """Each fault that a network has; nothing is lost, and nothing damaged is taken for good."""
    files = filled(store, 60)
    number = itertools.count()
    kinds = itertools.cycle(("503", "cut", "reset", "429"))
    store.fault = lambda method, target: next(kinds) if next(number) % 3 == 0 else ""
    paths = sorted(as_path("gs://mine/d").iterdir())
    fetch_all(paths)
    assert [read_file(path) for path in paths] == list(files.values())
    (as_path("gs://mine") / "w.bin").write_bytes(b"written")
    store.fault = lambda method, target: ""
    assert store.objects["w.bin"].data == b"written"


def test_a_slow_answer_is_given_up_and_asked_for_again(store, monkeypatch):
    files = filled(store, 1)
    monkeypatch.setattr("cervseg_jax.storage.store.REQUEST_SECONDS", 0.3)
    first = iter(["slow", "slow"])
    store.fault = lambda method, target: next(first, "")
    (path,) = as_path("gs://mine/d").iterdir()
    assert [read_file(path)] == list(files.values())


def test_trouble_that_lasts_ends_with_one_line(store, monkeypatch, caplog):
    filled(store, 1)
    (path,) = as_path("gs://mine/d").iterdir()
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.5)
    monkeypatch.setattr(retrying, "WARN_SECONDS", 0.1)
    store.fault = lambda method, target: "503"
    with pytest.raises(StoreError, match=r"^gs://mine/d/000.png: .* 503 \(\d+ attempts in .* up\?$"):
        read_file(path)
    assert caplog.text.count("trying again") == 1
    seen = requests_of(store)
    store.fault = lambda method, target: "403"
    with pytest.raises(StoreError, match=r"no permission .* ask the owner"):
        read_file(path)
    assert len(seen) == 1, "what is forbidden is not tried again"
    store.fault = lambda method, target: "reset"
    with pytest.raises(StoreError, match="is this machine online"):
        read_file(path)


def test_what_is_missing_is_named(store):
    filled(store, 1)
    with pytest.raises(DataError, match=r"^gs://mine/d/none.png: no such file$"):
        read_file(as_path("gs://mine/d/none.png"))
    with pytest.raises(StoreError, match=r"^gs://other: no such bucket"):
        as_path("gs://other/d").is_dir()
    with pytest.raises(StoreError, match=r"^gs://other: no such bucket"):
        as_path("gs://other/a.txt").write_text("a")


def test_without_the_client_the_message_says_what_to_install(store, monkeypatch):
    for scheme, package, extra in (("gs", "gcsfs", "bucket"), ("s3", "s3fs", "s3"), ("http", "aiohttp", "bucket")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ConfigError, match=f"{scheme}:// .*{re.escape(install_command(extra))}"):
            as_path(f"{scheme}://mine/data").is_dir()


def test_a_list_that_is_old(store):
    """Lists of some stores lag behind: files may have been replaced, deleted or added since."""
    files = filled(store, 3)
    store.stale["d/"] = dict(store.objects)
    store.put("d/000.png", b"another", {})
    del store.objects["d/001.png"]
    store.put("d/new.png", b"new", {})
    replaced, deleted, same = sorted(as_path("gs://mine/d").iterdir())
    assert read_file(replaced) == b"another"
    with pytest.raises(DataError, match=r"^gs://mine/d/001.png: no such file$"):
        read_file(deleted)
    assert read_file(same) == files["d/002.png"]
    assert read_file(as_path("gs://mine/d/new.png")) == b"new"
    replaced._listed = None
    assert read_file(replaced) == b"another"


def test_content_that_is_not_what_the_store_says(store, monkeypatch):
    filled(store, 1)
    (path,) = as_path("gs://mine/d").iterdir()
    right = store.objects["d/000.png"]
    described = store.describe
    store.describe = lambda *given: described(*given) | {"md5Hash": "AAAAAAAAAAAAAAAAAAAAAA=="}
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.2)
    path._listed = None
    with pytest.raises(DataError, match=r"arrives with another checksum \(MD5\) than the store's"):
        read_file(path)
    from google_crc32c import Checksum

    crc = Checksum(right.data).digest()
    for value, is_good in ((crc, True), (b"1234", False)):
        import base64

        fields = {"crc32c": base64.b64encode(value).decode()}
        store.describe = lambda *given, more=fields: {
            key: item for key, item in (described(*given) | more).items() if key != "md5Hash"
        }
        path._listed = None
        if is_good:
            assert read_file(path) == right.data
            store.put("d/000.png", right.data, {})  # another version of it
        else:
            with pytest.raises(DataError, match="CRC32C"):
                read_file(path)


def test_a_copy_that_is_damaged_is_fetched_again(store, tmp_path):
    files = filled(store, 1)
    (path,) = as_path("gs://mine/d").iterdir()
    read_file(path)
    (copy,) = (tmp_path / "cache").glob("*/*")
    assert hashlib.sha256(copy.read_bytes()).hexdigest() in copy.name
    copy.write_bytes(b"x" * 1000)
    seen = requests_of(store)
    assert [read_file(path)] == list(files.values())
    assert [read_file(path)] == list(files.values())
    assert len(seen) == 1


def test_a_large_file_goes_on_where_it_was_cut(store, monkeypatch):
    monkeypatch.setattr(cached, "PIECE_BYTES", 1000)
    ((_, data),) = filled(store, 1, size=10_500).items()
    (path,) = as_path("gs://mine/d").iterdir()
    number = itertools.count(1)
    monkeypatch.setattr(retrying, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(retrying, "PAGE_WAITS_SECONDS", ())
    store.fault = lambda method, target: "cut" if next(number) == 6 else ""
    with pytest.raises(StoreError):
        local_file(path)
    seen = requests_of(store)
    copy = local_file(path)
    assert copy.read_bytes() == read_file(path) == data
    assert copy.suffix == ".png"
    assert len(seen) == 6, "five pieces were there"
    assert local_file(path) == copy
    assert local_file(Path("here.svs")) == Path("here.svs")


def test_pieces_of_an_older_version_are_not_mixed_in(store, monkeypatch):
    monkeypatch.setattr(cached, "PIECE_BYTES", 1000)
    filled(store, 1, size=3000)
    (path,) = as_path("gs://mine/d").iterdir()
    store.put("d/000.png", b"z" * 3000, {})
    with pytest.raises(DataError, match="if it has just been replaced, call again"):
        local_file(path)
    path._listed = None
    assert local_file(path).read_bytes() == b"z" * 3000


def test_the_cache_stays_below_its_limit(store, tmp_path, monkeypatch):
    monkeypatch.setenv("CERVSEG_CACHE_GIB", str(10_500 / 2**30))
    files = filled(store, 40)
    paths = sorted(as_path("gs://mine/d").iterdir())
    seen = requests_of(store)
    for path in paths:
        assert read_file(path) == files[path.key.removeprefix("mine/")]
        assert sum(copy.stat().st_size for copy in (tmp_path / "cache").glob("*/*")) <= 10_500
    assert len(seen) == 40
    assert read_file(paths[-1]) and len(seen) == 40, "the last ones are kept"
    assert read_file(paths[0]) and len(seen) == 41


def test_a_full_disk_costs_requests_and_no_results(store, monkeypatch, caplog):
    files = filled(store, 5)
    monkeypatch.setattr(cache_module, "SPARE_BYTES", 2**60)
    cached._warn_once.cache_clear()
    paths = sorted(as_path("gs://mine/d").iterdir())
    assert [read_file(path) for path in fetch_ahead(paths)] == list(files.values())
    assert caplog.text.count("files are read without being kept on this machine") == 1
    monkeypatch.setattr(cached, "PIECE_BYTES", 100)
    with pytest.raises(ConfigError, match=r"d/000.png: needs .* set CERVSEG_CACHE_DIR and CERVSEG_CACHE_GIB"):
        local_file(paths[0])


def test_the_limit_is_a_number(store, monkeypatch):
    monkeypatch.setenv("CERVSEG_CACHE_GIB", "much")
    with pytest.raises(ConfigError, match="CERVSEG_CACHE_GIB: must be a positive number of GiB, got 'much'"):
        default_cache()


def test_threads_that_start_together_share_one_cache(tmp_path, monkeypatch):
    def count_slowly(folder):
        time.sleep(0.05)
        return 2**30

    monkeypatch.setenv("CERVSEG_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("CERVSEG_CACHE_GIB", raising=False)
    monkeypatch.setattr(cache_module, "_default_limit", count_slowly)
    cache_module.machine_cache.cache_clear()
    start = threading.Barrier(8)
    with ThreadPoolExecutor(8) as pool:
        caches = list(pool.map(lambda _: start.wait() * 0 or default_cache(), range(8)))
    cache_module.machine_cache.cache_clear()
    assert len({id(cache) for cache in caches}) == 1


def test_large_copies_that_were_just_used_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, "LARGE_BYTES", 100)
    cache = Cache(tmp_path, 1000)
    cache.write("a" * 40, b"a" * 400, suffix=".svs")
    cache.write("b" * 40, b"b" * 50, suffix=".png")
    cache.write("c" * 40, b"c" * 560, suffix=".svs")
    assert cache.read("a" * 40) and cache.read("c" * 40)
    assert cache.read("b" * 40) is None
    with pytest.raises(CacheFullError):
        cache.write("d" * 40, b"d" * 500, suffix=".svs")


READER = """
import sys
from cervseg_jax.storage.address import as_path
from cervseg_jax.storage.cached import fetch_ahead, read_file
import hashlib
for path in fetch_ahead(sorted(as_path("gs://mine/d").iterdir())):
    print(hashlib.sha256(read_file(path)).hexdigest())
"""


def test_processes_share_the_cache(store, tmp_path):
    """Three processes at once, two of which are killed: the third reads all, and leaves no unfinished copy."""
    files = filled(store, 150)
    environment = ENVIRONMENT | store.environment | {"CERVSEG_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", READER]
    started = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    while not list((tmp_path / "cache").glob("*/*")):
        time.sleep(0.01)
    for process in started[:2]:
        process.kill()
        process.communicate()
    stdout, _ = started[2].communicate(timeout=60)
    assert stdout.split() == [hashlib.sha256(data).hexdigest() for data in files.values()]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def web(tmp_path):
    """Python's own web server, which lists folders and knows no ranges."""
    (tmp_path / "site" / "sub folder").mkdir(parents=True)
    for name in ("a.png", "b c.png", "100%.png"):
        (tmp_path / "site" / "sub folder" / name).write_bytes(name.encode() * 100)
    handler = lambda *given: _Quiet(*given, directory=str(tmp_path / "site"))  # noqa: E731
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield as_path(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_web_server(store, web, tmp_path):
    assert web.is_dir() and (web / "sub folder").is_dir() and not (web / "none").exists()
    (tmp_path / "site" / "top.txt").write_text("top")
    assert sorted(path.name for path in web.files()) == ["100%.png", "a.png", "b c.png", "top.txt"]
    paths = sorted((web / "sub folder").iterdir())
    assert [path.name for path in paths] == ["100%.png", "a.png", "b c.png"]
    for path in paths:
        assert read_file(path) == path.name.encode() * 100
        assert local_file(path).read_bytes() == path.name.encode() * 100
        assert path.read_range(2, 5) == (path.name.encode() * 100)[2:5]
    with pytest.raises(DataError, match="no such file"):
        read_file(web / "none.png")
    with pytest.raises(StoreError, match="cannot be written to a web server"):
        (web / "x.txt").write_text("x")
