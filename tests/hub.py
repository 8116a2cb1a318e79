"""A stand-in for the Hugging Face hub: data set repositories that are folders, over HTTP on loopback, with faults.

It speaks the part of the hub's API that huggingface_hub and datasets use to find and read files. `HF_ENDPOINT` points
them at it, so no client of a test knows the difference.
"""

import hashlib
import json
import random
import re
import socket
import struct
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from sconce.data import hub as hub_module

FAULTS = ("reset", "error", "truncated", "slow")


@dataclass
class Faults:
    """Which requests fail, and how: each with the probability `rate`, by a generator of its own; all with `down`."""

    rate: float = 0.0
    seed: int = 0
    kinds: tuple[str, ...] = FAULTS
    down: bool = False
    happened: list[str] = field(default_factory=list)

    def __post_init__(self):
        self._random = random.Random(self.seed)

    def next(self) -> str | None:
        if self.down:
            return "error"
        kind = self._random.choice(self.kinds) if self._random.random() < self.rate else None
        if kind is not None:
            self.happened.append(kind)
        return kind


class Hub:
    """Repositories in `root`/org/name. A folder of that name with @REVISION holds another state of the same one."""

    def __init__(self, root: Path) -> None:
        self.root, self.faults, self.requests, self.bytes_sent = root, Faults(), [], 0
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.hub = self
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def folder(self, repo: str, revision: str) -> Path | None:
        """The files of a revision: a branch, or the commit that `commit` names."""
        for folder in self.root.glob(f"{repo}*"):
            name, _, branch = folder.relative_to(self.root).as_posix().partition("@")
            if name == repo and revision in (branch or "main", self.commit(folder)):
                return folder
        return None

    @staticmethod
    def commit(folder: Path) -> str:
        """A commit's hash: of the content of all files."""
        digest = hashlib.sha1()
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(
                path.relative_to(folder).as_posix().encode() + _sha256(path, path.stat().st_mtime_ns).encode()
            )
        return digest.hexdigest()


@contextmanager
def serving(root: Path, monkeypatch=None):
    """A hub of the folders in `root`; with `monkeypatch`, huggingface_hub in this process talks to it."""
    hub = Hub(root)
    try:
        if monkeypatch is not None:
            point_here(hub, root, monkeypatch)
        yield hub
    finally:
        hub.close()


def environment(hub: Hub, home: Path) -> dict[str, str]:
    """What a process needs to talk to this hub."""
    return {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_TOKEN": ""}


def point_here(hub: Hub, home: Path, monkeypatch) -> None:
    """Point huggingface_hub and datasets of this process, which read their environment once, at the hub."""
    import datasets.config
    import huggingface_hub.constants
    from huggingface_hub import HfApi, HfFileSystem, hf_file_system

    if sys.modules.get("torch", hub) is None:  # the core's tests forbid it so; datasets takes any entry for a module
        monkeypatch.delitem(sys.modules, "torch")
    for name, value in environment(hub, home / "hf-home").items():
        monkeypatch.setenv(name, value)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    for module, name, value in (
        (huggingface_hub.constants, "ENDPOINT", hub.endpoint),
        (huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
        (huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hf-home/hub")),
        (datasets.config, "HF_ENDPOINT", hub.endpoint),
        (datasets.config, "HF_CACHE_HOME", str(home / "hf-home")),
        (datasets.config, "HF_DATASETS_CACHE", home / "hf-home/datasets"),
        (datasets.config, "HUB_DATASETS_URL", hub.endpoint + "/datasets/{repo_id}/resolve/{revision}/{path}"),
        (hf_file_system.constants, "ENDPOINT", hub.endpoint),
    ):
        monkeypatch.setattr(module, name, value, raising=False)
    monkeypatch.setattr(HfApi, "__init__", _init_at(HfApi.__init__, hub.endpoint))
    HfFileSystem.clear_instance_cache()
    hub_module.resolve.cache_clear()
    hub_module.list_files.cache_clear()
    monkeypatch.setattr(hub_module, "FIRST_WAIT_SECONDS", 0.001)


def write_toy(root: Path, files: int = 3, rows: int = 200, name: str = "org/toy", config: str = "default") -> list[str]:
    """A repository of Parquet files with a train and a test split; the documents of train, in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = root / name
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {config}\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "  - split: test\n    path: data/test-*\n---\nA toy.\n"
    )
    texts = [f"document {number} of the toy: " + "word " * (number * 7 % 40) for number in range(files * rows)]
    for split, count in (("train", files), ("test", 1)):
        for file in range(count):
            some = texts[file * rows : (file + 1) * rows] if split == "train" else [f"test {n}" for n in range(9)]
            table = pa.table({"id": list(range(len(some))), "text": some})
            pq.write_table(table, folder / f"data/{split}-{file:05d}-of-{count:05d}.parquet", row_group_size=60)
    return texts


def _init_at(init, endpoint):
    def wrapped(self, endpoint_=None, *arguments, **options):
        options.setdefault("endpoint", endpoint_ or endpoint)
        if options["endpoint"] is None:
            options["endpoint"] = endpoint
        init(self, *arguments, **options)

    return wrapped


@cache
def _sha256(path: Path, mtime_ns: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request, client_address):
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_):
        """Quiet."""

    def do_HEAD(self):
        self._answer(head=True)

    def do_GET(self):
        self._answer(head=False)

    def do_POST(self):
        self._answer(head=False)

    def _answer(self, head):
        hub = self.server.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        fault = hub.faults.next()
        if fault == "reset":
            self._reset()
        elif fault == "error":
            self._send(503, b"busy", head=head)
        elif match := re.fullmatch(r"/api/datasets/(.+?)/(tree|paths-info|revision)/([^/]+)(?:/(.*))?", path):
            self._api(*match.groups(), {**query, **parse_qs(body.decode())}, body, head)
        elif match := re.fullmatch(r"/datasets/(.+?)/resolve/([^/]+)/(.+)", path):
            self._file(*match.groups(), head, fault)
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)", path):
            self._api(match[1], "revision", "main", None, query, body, head)
        else:
            self._missing("EntryNotFound", head)

    def _api(self, repo, kind, revision, inside, query, body, head):
        hub = self.server.hub
        folder = hub.folder(repo, revision)
        if folder is None:
            known = hub.folder(repo, "main") is not None
            return self._missing("RevisionNotFound" if known else "RepoNotFound", head)
        if kind == "revision":
            files = [{"rfilename": path.relative_to(folder).as_posix()} for path in _files(folder)]
            return self._json({"id": repo, "sha": hub.commit(folder), "siblings": files, "private": False}, head)
        if kind == "paths-info":
            asked = json.loads(body)["paths"] if body[:1] == b"{" else query["paths"]
            return self._json([_entry(folder, folder / name) for name in asked if (folder / name).exists()], head)
        place = folder / (inside or "")
        if not place.is_dir():
            return self._missing("EntryNotFound", head)
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        found = sorted(place.rglob("*") if recursive else place.iterdir())
        return self._json([_entry(folder, path) for path in found], head)

    def _file(self, repo, revision, name, head, fault):
        hub = self.server.hub
        folder = hub.folder(repo, revision)
        path = None if folder is None else folder / name
        if folder is None or path is None or not path.is_file():
            return self._missing("EntryNotFound" if folder else "RepoNotFound", head)
        content = path.read_bytes()
        start, end = 0, len(content) - 1
        ranged = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if ranged:
            start, end = int(ranged[1]), min(end, int(ranged[2] or end))
        headers = {
            "ETag": f'"{_sha256(path, path.stat().st_mtime_ns)}"',
            "X-Repo-Commit": hub.commit(folder),
            "Accept-Ranges": "bytes",
        }
        if ranged:
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        return self._send(206 if ranged else 200, content[start : end + 1], headers, head=head, fault=fault)

    def _json(self, value, head):
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, head=head)

    def _missing(self, code, head):
        self._send(404, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, head=head)

    def _send(self, status, body, headers=None, *, head=False, fault=None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if head:
            return
        if fault == "truncated":
            self.wfile.write(body[: len(body) // 2])
            self._reset(gently=True)
            return
        if fault == "slow":
            half = len(body) // 2
            self.wfile.write(body[:half])
            self.wfile.flush()
            time.sleep(0.05)
            body = body[half:]
        self.wfile.write(body)
        self.server.hub.bytes_sent += len(body)

    def _reset(self, gently=False):
        """End the connection: with a FIN, or with a RST as a machine that went down sends."""
        self.wfile.flush()
        if not gently:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()


def _files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _entry(folder, path):
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0}
    sha256 = _sha256(path, path.stat().st_mtime_ns)
    entry = {"type": "file", "path": name, "oid": sha256[:40], "size": path.stat().st_size}
    if path.suffix in (".parquet", ".gz", ".zst"):
        entry["lfs"] = {"oid": sha256, "size": path.stat().st_size, "pointerSize": 130}
    return entry
