"""A bucket on this machine: what clients need of Cloud Storage's JSON API (version 1), kept in memory.

Written after the public description of the API, for three clients: gcsfs, google-cloud-storage and TensorStore.

    python tests/bucket_server.py FOLDER [SHARE]

serves a folder as `gs://mine` until it is stopped, and lets that share of the requests fail.
"""

import base64
import hashlib
import json
import random
import re
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

NAME = "mine"
TARGET = re.compile(r"(/upload|/download)?/storage/v1/b/([^/]+)(?:/o(?:/([^/]+))?)?")


class Stored(NamedTuple):
    data: bytes
    generation: int


class Bucket(ThreadingHTTPServer):
    """A server with one bucket, `NAME`."""

    daemon_threads = True
    request_queue_size = 128  # clients fetch many files at once

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, Stored] = {}
        self.uploads: dict[str, str] = {}
        self.lock = threading.RLock()
        self.is_writable = True
        self.watch: Callable[[str, bytes], None] = lambda method, request: None
        """Called with each request, address and body, before it is answered."""
        self.fault: Callable[[str, str], str] = lambda method, target: ""
        """What goes wrong with a request: "503", "403", "reset" (no answer), "cut" (half of it), "slow", or ""."""
        self.slow_seconds = 1.0
        self.stale: dict[str, dict[str, Stored]] = {}
        """What lists show instead of the objects, by prefix."""

    @property
    def environment(self) -> dict[str, str]:
        """What sends clients in another process here."""
        address = f"http://127.0.0.1:{self.server_port}"
        return {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask Google what kind of bucket this is
        }

    def handle_error(self, request, client_address):
        """Clients hang up when they are killed."""

    def put(self, name: str, data: bytes, query: dict[str, str]):
        found = self.objects.get(name, Stored(b"", 0))
        if int(query.get("ifGenerationMatch", found.generation)) != found.generation:
            return 412, b"{}", {}
        self.objects[name] = Stored(data, max((item.generation for item in self.objects.values()), default=0) + 1)
        return 200, self.describe(name), {}

    def describe(self, name: str, objects: dict[str, Stored] | None = None) -> dict[str, str]:
        data, generation = (self.objects if objects is None else objects)[name]
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": NAME,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "etag": str(generation),
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
        }

    def listing(self, query: dict[str, str]):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        names, folders = [], set()
        objects = self.stale.get(prefix, self.objects)
        for name in sorted(objects):
            inside = name.startswith(prefix) and name >= query.get("startOffset", "")
            if not inside or ("endOffset" in query and name >= query["endOffset"]):
                continue
            head, found, _ = name.removeprefix(prefix).partition(delimiter) if delimiter else (name, "", "")
            if found:
                folders.add(prefix + head + found)
            else:
                names.append(name)
        first = int(query.get("pageToken", 0))
        last = first + int(query.get("maxResults", len(names) or 1))
        items = [self.describe(name, objects) for name in names[first:last]]
        token = {"nextPageToken": str(last)} if last < len(names) else {}
        return 200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders), **token}, {}

    def answer(self, method: str, target: str, headers: dict[str, str], body: bytes):
        """Returns status, body and headers."""
        url = urlsplit(target)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        match = TARGET.fullmatch(url.path)
        if match is None or match[2] != NAME:
            return 404, {"error": {"code": 404, "message": "The specified bucket does not exist."}}, {}
        if method in ("POST", "PUT", "DELETE") and not self.is_writable:
            return 403, {"error": {"code": 403, "message": "no permission storage.objects.create"}}, {}
        if match[1] == "/upload":
            return self.upload(query, headers, body)
        if match[3] is None:
            return (
                self.listing(query) if url.path.endswith("/o") else (200, {"kind": "storage#bucket", "name": NAME}, {})
            )
        name = unquote(match[3])
        if name not in self.objects:
            return 404, {"error": {"code": 404, "message": f"No such object: {name}"}}, {}
        generation = self.objects[name].generation
        if int(query.get("ifGenerationMatch", generation)) != generation:
            return 412, b"{}", {}
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", {}
        if method == "DELETE":
            del self.objects[name]
            return 204, b"", {}
        if match[1] == "/download" or query.get("alt") == "media":
            return self.content(self.objects[name], headers)
        return 200, self.describe(name), {}

    def content(self, stored: Stored, headers: dict[str, str]):
        data, more = stored.data, {"x-goog-generation": str(stored.generation)}
        if "range" not in headers:
            return 200, data, more
        first, last = re.fullmatch(r"bytes=(-?\d+)-?(\d*)", headers["range"]).groups()
        first = int(first) % len(data) if int(first) < 0 else int(first)
        last = min(int(last or len(data)), len(data) - 1)
        if first >= len(data):
            return 416, b"", {"Content-Range": f"bytes */{len(data)}"}
        return 206, data[first : last + 1], more | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}

    def upload(self, query: dict[str, str], headers: dict[str, str], body: bytes):
        if "upload_id" in query:
            return self.put(self.uploads.pop(query["upload_id"]), body, query)
        if query["uploadType"] == "media":
            return self.put(query["name"], body, query)
        if query["uploadType"] == "resumable":
            key = uuid.uuid4().hex
            self.uploads[key] = query["name"]
            address = f"http://{headers['host']}/upload/storage/v1/b/{NAME}/o?uploadType=resumable&upload_id={key}"
            return 200, b"", {"Location": address}
        boundary = re.search('boundary="?([^";]+)', headers["content-type"])[1].encode()
        _, meta, content, _ = (b"\n" + body).split(b"\n--" + boundary)
        name, data = (part.split(b"\n\n", 1)[1] for part in (meta, content))
        return self.put(json.loads(name)["name"], data, query)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def log_message(self, *_) -> None:
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.watch(self.command, self.path.encode() + body)
        headers = {name.lower(): value for name, value in self.headers.items()}
        fault = self.server.fault(self.command, self.path)
        if fault == "reset":
            self.close_connection = True
            return
        if fault == "slow":
            time.sleep(self.server.slow_seconds)
        if fault.isdecimal():
            status, body, more = int(fault), {"error": {"code": int(fault), "message": "a fault"}}, {}
        else:
            with self.server.lock:
                status, body, more = self.server.answer(self.command, self.path, headers, body)
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in (more | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if fault == "cut":
            self.close_connection = True
            data = data[: len(data) // 2]
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_DELETE = _handle


def main() -> None:
    """Serves a folder; prints the variable that sends clients here, and at the end the requests of each kind."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let their background jobs ignore it
    folder, share = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0
    server = Bucket()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file()), start=1):
        server.objects[path.relative_to(folder).as_posix()] = Stored(path.read_bytes(), number)
    counts: dict[str, int] = {}
    rng = random.Random(0)

    def fault(method: str, target: str) -> str:
        kind = "list" if target.partition("?")[0].endswith("/o") else "read" if "alt=media" in target else "ask"
        fails = rng.random() < share
        with server.lock:
            for name in (method if method != "GET" else kind, "failed" if fails else "good"):
                counts[name] = counts.get(name, 0) + 1
        return rng.choice(("503", "cut", "reset")) if fails else ""

    server.fault = fault
    print(f"export STORAGE_EMULATOR_HOST=http://127.0.0.1:{server.server_port}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print(json.dumps(counts), flush=True)


if __name__ == "__main__":
    main()
