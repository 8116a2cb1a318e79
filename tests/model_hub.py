"""A stand-in for the Hugging Face hub: model repositories on a loopback port, as huggingface_hub speaks with them.

Large files go by git-lfs's protocol and a redirect, as on the hub; xet, its other way, is not spoken here.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_secretsecretsecretsecretsecret"
LARGE = (".safetensors", ".png")


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """`branches` are commits, oldest first."""

    private: bool
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        if revision in self.branches:
            return self.branches[revision][-1]
        commits = [commit for branch in self.branches.values() for commit in branch]
        return next((commit for commit in commits if commit.oid == revision), None)

    def add(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        oid = hashlib.sha1(repr((message, len(self.branches.get(branch, [])), sorted(files))).encode()).hexdigest()
        self.branches.setdefault(branch, []).append(Commit(oid, message, files))
        return self.branches[branch][-1]


@dataclass
class Fault:
    """The next `times` requests whose "METHOD path" matches are answered otherwise.

    `how` is a status, "cut" (the connection ends halfway through the content), "damage" (one byte is another's),
    "lost" (the request is carried out, and answered with status 500), or "overtaken" (someone else commits first).
    """

    pattern: str
    how: int | str
    times: int = 1
    says: str = "a fault"


class ModelHub(ThreadingHTTPServer):
    """`requests` are (method, path, JSON or None), `uploaded` the names' oids whose content was sent, in order."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.store = f"http://localhost:{self.server_address[1]}"  # of large files: another host, as on the hub
        self.repos: dict[str, Repo] = {}
        self.large: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, object]] = []
        self.uploaded: list[str] = []
        self.tokens = {TOKEN}
        self.readers: set[str] = set()  # tokens that may not write

    def fault(self, pattern: str, how: int | str, times: int = 1, says: str = "a fault") -> None:
        self.faults.append(Fault(pattern, how, times, says))

    def take_fault(self, line: str) -> Fault | None:
        for fault in self.faults:
            if fault.times and re.search(fault.pattern, line):
                fault.times -= 1
                return fault
        return None

    def make(self, name: str, files: dict[str, bytes], private: bool = False) -> Repo:
        self.repos[name] = Repo(private)
        self.repos[name].add("main", "initial commit", files)
        return self.repos[name]


@contextmanager
def model_hub() -> Iterator[ModelHub]:
    with ModelHub() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: ModelHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self):
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.query = parse_qs(url.query)
        is_json = "json" in self.headers.get("Content-Type", "") and "ndjson" not in self.headers["Content-Type"]
        self.json = json.loads(self.body) if is_json else None
        self.server.requests.append((self.command, path, self.json))
        self.fault = self.server.take_fault(f"{self.command} {path}")
        if self.fault is not None and isinstance(self.fault.how, int):
            self._error(self.fault.how, self.fault.says)
            return
        for pattern, method in _ROUTES:
            if (found := re.fullmatch(pattern, f"{self.command} {url.path}")) is not None:
                method(self, *(unquote(part) for part in found.groups()))
                return
        self._error(404, f"the stand-in knows no {self.command} {path}")

    def _answer(self, value, status=200):
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status, says, code=None):
        headers = {"X-Error-Message": says, "Content-Type": "application/json"}
        self._send(status, json.dumps({"error": says}).encode(), headers | ({"X-Error-Code": code} if code else {}))

    def _send(self, status, content, headers):
        self.send_response(500 if self.fault is not None and self.fault.how == "lost" else status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        how = None if self.fault is None else self.fault.how
        if how == "cut":
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        if how == "damage":
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        self.wfile.write(content)

    def _token(self):
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def _may(self, write=False) -> bool:
        """Whether the token is good; the refusal is sent."""
        token = self._token()
        if token and token not in self.server.tokens:
            self._error(401, "Invalid credentials in Authorization header")
        elif write and not token:
            self._error(401, "Invalid username or password.")
        elif write and token in self.server.readers:
            self._error(403, "Forbidden: you need a token with write permission")
        else:
            return True
        return False

    def _repo(self, name, write=False):
        """The repository, if the token may; else what the hub says is sent."""
        repo = self.server.repos.get(name)
        if not self._may(write):
            return None
        if repo is None or (repo.private and not self._token()):
            self._error(404 if self._token() else 401, "Repository not found", "RepoNotFound")
            return None
        return repo

    def _commit_of(self, name, revision):
        repo = self._repo(name)
        if repo is None:
            return None
        commit = repo.at(revision)
        if commit is None:
            self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def create(self):
        if not self._may(write=True):
            return
        name = f"{self.json['organization']}/{self.json['name']}"
        if name in self.server.repos:
            self._answer({"error": "You already created this model repo", "url": f"{self.server.url}/{name}"}, 409)
            return
        private = self.json.get("private", self.json.get("visibility") == "private")
        self.server.make(name, {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"}, private)
        self._answer({"url": f"{self.server.url}/{name}"})

    def info(self, name, revision="main"):
        commit = self._commit_of(name, revision)
        if commit is None:
            return
        siblings = [
            {"rfilename": path, **({"size": len(content), **_listed(path, content)} if self.query.get("blobs") else {})}
            for path, content in sorted(commit.files.items())
        ]
        private = self.server.repos[name].private
        self._answer({"id": name, "modelId": name, "sha": commit.oid, "private": private, "siblings": siblings})

    def branch(self, name, branch):
        repo = self._repo(name, write=True)
        if repo is None:
            return
        if branch in repo.branches:
            self._error(409, "Reference already exists")
            return
        repo.branches[branch] = [repo.branches["main"][-1]]
        self._answer({})

    def validate(self):
        front = self.json["content"].split("---\n")
        good = self.json["content"].startswith("---\n") and len(front) >= 3
        self._answer({"errors": [] if good else [{"message": "no metadata"}], "warnings": []}, 200 if good else 400)

    def preupload(self, name, revision):
        repo = self._repo(name, write=True)
        if repo is None:
            return
        there = repo.at(revision).files
        files = []
        for file in self.json["files"]:
            path = file["path"]
            large = path.endswith(LARGE)
            oid = None
            if path in there:
                oid = hashlib.sha256(there[path]).hexdigest() if large else git_sha1(there[path])
            files.append({"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid})
        self._answer({"files": files})

    def batch(self, name):
        if self._repo(name, write=True) is None:
            return
        objects = []
        for wanted in self.json["objects"]:
            upload = {"upload": {"href": f"{self.server.store}/large/{wanted['oid']}?signature=abc"}}
            objects.append(wanted if wanted["oid"] in self.server.large else wanted | {"actions": upload})
        self._answer({"transfer": "basic", "objects": objects})

    def upload(self, oid):
        assert "Authorization" not in self.headers  # a signed address needs no token, and another host gets none
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.server.large[oid] = self.body
        self.server.uploaded.append(oid)
        self._send(200, b"", {})

    def commit(self, name, branch):
        repo = self._repo(name, write=True)
        if repo is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        self.server.requests.append(("COMMIT", name, [line["value"].get("path") for line in lines[1:]]))
        if self.fault is not None and self.fault.how == "overtaken":
            repo.add(branch, "another's", repo.at(branch).files | {"another's.txt": b"1"})
        before = repo.at(branch)
        if header.get("parentCommit") not in (None, before.oid):
            self._error(412, "A commit has happened since. Please refresh and try again.")
            return
        files = dict(before.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                del files[value["path"]]
        made = repo.add(branch, header["summary"], files)
        url = f"{self.server.url}/{name}/commit/{made.oid}"
        self._answer({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})

    def resolve(self, name, revision, path):
        commit = self._commit_of(name, revision)
        if commit is None:
            return
        if path not in commit.files:
            self._error(404, "Entry not found", "EntryNotFound")
            return
        content = commit.files[path]
        listed = _listed(path, content)
        headers = {"X-Repo-Commit": commit.oid}
        if "lfs" in listed:
            oid = listed["lfs"]["sha256"]
            self.server.large[oid] = content
            linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": len(content)}
            self._send(302, b"", {**headers, **linked, "Location": f"{self.server.store}/large/{oid}"})
            return
        self._part(content, headers | {"ETag": f'"{listed["blobId"]}"'})

    def large(self, oid):
        assert "Authorization" not in self.headers
        self._part(self.server.large[oid], {"ETag": f'"{oid}"'})

    def _part(self, content, headers):
        """All of it, or from where the client has come."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if found is None:
            self._send(200, content, headers)
            return
        first = int(found[1])
        said = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        self._send(206, content[first:], {**headers, **said})


def _listed(path, content):
    entry = {"blobId": git_sha1(content)}
    if path.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
    return entry


_REPO = r"([^/]+/[^/]+)"
_ROUTES = [
    (r"POST /api/repos/create", _Handler.create),
    (rf"GET /api/models/{_REPO}", _Handler.info),
    (rf"GET /api/models/{_REPO}/revision/([^/]+)", _Handler.info),
    (rf"POST /api/models/{_REPO}/branch/([^/]+)", _Handler.branch),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST /api/models/{_REPO}/preupload/([^/]+)", _Handler.preupload),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"PUT /large/(\w+)", _Handler.upload),
    (rf"POST /api/models/{_REPO}/commit/([^/]+)", _Handler.commit),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
    (r"(?:GET|HEAD) /large/(\w+)", _Handler.large),
]
