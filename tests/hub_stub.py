"""A loopback server that speaks enough of the Hub's interface for the real client; standard library only.

    hub = HubStub()                  # listens on a free port at once
    with hub.patched():              # huggingface_hub and datasets of this process talk to it
        ...
    subprocess.run(..., env={**os.environ, **hub.environment()})
    hub.close()

Repositories live in memory: `hub.repos["datasets/user/name"]`. `hub.fail(...)` makes calls fail, `hub.calls`
lists every call that was made.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_" + "stub" * 8  # accepted by the stub alone
READ_ONLY_TOKEN = "hf_" + "read" * 8
LFS_SUFFIXES = (".parquet", ".arrow", ".bin", ".safetensors")


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    private: bool = True
    branches: dict[str, list[Commit]] = field(default_factory=dict)

    def add(self, branch: str, message: str, files: dict[str, bytes]) -> Commit:
        commits = self.branches.setdefault(branch, [])
        facts = repr((branch, len(commits), message, sorted(files)))
        commits.append(Commit(hashlib.sha1(facts.encode()).hexdigest(), message, files))  # noqa: S324
        return commits[-1]

    def at(self, revision: str) -> Commit | None:
        if self.branches.get(revision):
            return self.branches[revision][-1]
        every = [c for commits in self.branches.values() for c in commits]
        return next((c for c in every if c.sha == revision), None)

    @property
    def head(self) -> Commit:
        return self.branches["main"][-1]


@dataclass
class Call:
    method: str
    path: str
    body: Any
    token: str | None


@dataclass
class Failure:
    method: str
    path: str
    status: int
    times: int
    headers: dict[str, str]


class HubStub:
    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.calls: list[Call] = []
        self.failures: list[Failure] = []
        self.lock = threading.RLock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def create(
        self,
        name: str,
        files: dict[str, bytes] | None = None,
        *,
        kind: str = "datasets",
        private: bool = False,
    ) -> Repo:
        """A repository as if someone had pushed `files` before."""
        repo = self.repos[f"{kind}/{name}"] = Repo(private=private)
        repo.add("main", "initial commit", {".gitattributes": b"*.parquet filter=lfs\n", **(files or {})})
        return repo

    def fail(self, method: str, path: str, status: int, times: int = 1, **headers: str) -> None:
        """Let the next `times` calls whose path matches the pattern fail with the status."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.failures.append(Failure(method, path, status, times, named))

    def made(self, method: str, pattern: str) -> list[Call]:
        return [c for c in self.calls if c.method == method and re.search(pattern, c.path)]

    def environment(self, home: Path | None = None) -> dict[str, str]:
        """Variables for a subprocess; `home` keeps its caches and token away from the user's."""
        mine = {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return mine if home is None else {**mine, "HF_HOME": str(home)}

    @contextmanager
    def patched(self, cache: Path | None = None) -> Iterator[HubStub]:
        """Point the clients that this process has imported already at the stub."""
        import datasets.config
        from huggingface_hub import constants
        from huggingface_hub.utils import _headers as _  # noqa: F401 - loads what reads the constants

        changes: list[tuple[Any, str, Any]] = [
            (constants, "ENDPOINT", self.url),
            (constants, "HF_HUB_DISABLE_XET", True),
            (constants, "HF_HUB_OFFLINE", False),
            (constants, "HUGGINGFACE_CO_URL_TEMPLATE", self.url + "/{repo_id}/resolve/{revision}/{filename}"),
            (datasets.config, "HF_ENDPOINT", self.url),
            (datasets.config, "HF_HUB_OFFLINE", False),
            (datasets.config, "HUB_DATASETS_URL", self.url + "/datasets/{repo_id}/resolve/{revision}/{path}"),
        ]
        if cache is not None:
            changes += [
                (constants, "HF_HUB_CACHE", str(cache / "hub")),
                (constants, "HF_TOKEN_PATH", str(cache / "token")),
                (datasets.config, "HF_DATASETS_CACHE", cache / "datasets"),
                (datasets.config, "HF_MODULES_CACHE", str(cache / "modules")),
            ]
        environment = {k: v for k, v in self.environment().items() if k != "HF_TOKEN"}
        with mock.patch.dict("os.environ", environment):
            patches = [mock.patch.object(owner, name, value) for owner, name, value in changes]
            for patch in patches:
                patch.start()
            try:
                yield self
            finally:
                for patch in reversed(patches):
                    patch.stop()

    def with_lfs(self, name: str) -> bool:
        return name.endswith(LFS_SUFFIXES)


def git_sha(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - as git does


def _handler(hub: HubStub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        stub = hub

    return Handler


class _Handler(BaseHTTPRequestHandler):
    stub: HubStub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        return

    def do_GET(self) -> None:
        self.handle_call()

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815

    def handle_call(self) -> None:
        self.route = unquote(urlsplit(self.path).path)
        self.query = parse_qs(urlsplit(self.path).query)
        self.raw = self.read_body()
        kind = self.headers.get("Content-Type", "")
        body: Any = self.raw
        if "ndjson" in kind:
            body = [json.loads(line) for line in self.raw.decode().splitlines() if line.strip()]
        elif "json" in kind and self.raw:
            body = json.loads(self.raw)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ").strip() or None
        with self.stub.lock:
            self.stub.calls.append(Call(self.command, self.route, body, token))
            for failure in self.stub.failures:
                if failure.times and failure.method == self.command and re.search(failure.path, self.route):
                    failure.times -= 1
                    self.reply(failure.status, {"error": "on purpose"}, failure.headers)
                    return
            if token not in (None, TOKEN, READ_ONLY_TOKEN) and not self.route.startswith("/objects/"):
                words = "Invalid credentials in Authorization header"
                self.reply(401, {"error": words}, {"X-Error-Message": words})
                return
            self.dispatch(body, token)

    def read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def dispatch(self, body: Any, token: str | None) -> None:
        if self.command == "PUT":
            self.stub.objects[self.route.rsplit("/", 1)[1]] = self.raw
            self.reply(200, {})
        elif self.route == "/api/validate-yaml":
            self.validate(body)
        elif self.route == "/api/whoami-v2":
            self.reply(200 if token else 401, {"name": "user", "type": "user"})
        elif self.route == "/api/repos/create":
            self.create(body, token)
        elif self.route.startswith("/objects/verify"):
            self.reply(200, {})
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(.*))?", self.route):
            self.api(f"{match[1]}/{match[2]}", match[3] or "", body, token)
        elif match := re.fullmatch(r"/datasets/(.+)\.git/info/lfs/objects/batch", self.route):
            self.batch(f"datasets/{match[1]}", body, token)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.route):
            self.resolve(f"{match[1] or 'models/'}{match[2]}", match[3], match[4], token)
        else:
            self.reply(404, {"error": f"the stub does not know {self.command} {self.route}"})

    def reply(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if "Content-Length" not in (headers or {}):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def missing(self, code: str, status: int = 404) -> None:
        self.reply(status, {"error": code}, {"X-Error-Code": code, "X-Error-Message": code})

    def visible(self, key: str, token: str | None, write: bool = False) -> Repo | None:
        """The repository, or None after an answer that says why not."""
        repo = self.stub.repos.get(key)
        if repo is None or (repo.private and token is None):
            self.missing("RepoNotFound", 404 if token else 401)
            return None
        if write and token != TOKEN:
            self.reply(403 if token else 401, {"error": "You need write permission"})
            return None
        return repo

    def create(self, body: dict[str, Any], token: str | None) -> None:
        owner = body.get("organization") or "user"
        key = f"{body.get('type', 'model')}s/{owner}/{body['name']}"
        if token != TOKEN or owner not in ("user", "team"):
            self.reply(403, {"error": f"You don't have the rights to create a repository under {owner}"})
            return
        repo_url = f"{self.stub.url}/{key}"
        if key in self.stub.repos:
            self.reply(409, {"error": "You already created this dataset repo", "url": repo_url})
            return
        private = body.get("private", False) or body.get("visibility") == "private"
        self.stub.create(f"{owner}/{body['name']}", kind=key.split("/")[0], private=private)
        self.reply(200, {"url": repo_url, "name": f"{owner}/{body['name']}", "id": "0" * 24})

    def validate(self, body: dict[str, Any]) -> None:
        block = re.match(r"---\r?\n(.*?)\r?\n---", body["content"], re.DOTALL)
        errors = []
        try:
            yaml.safe_load(block[1] if block else "")
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self.reply(400 if errors else 200, {"errors": errors, "warnings": []})

    def api(self, key: str, rest: str, body: Any, token: str | None) -> None:
        action, _, tail = rest.partition("/")
        repo = self.visible(key, token, write=action in ("preupload", "commit", "branch"))
        if repo is None:
            return
        if action == "preupload":
            self.preupload(repo, unquote(tail), body)
        elif action == "commit":
            self.commit(key, repo, unquote(tail), body)
        elif action == "branch":
            if tail in repo.branches:
                self.reply(409, {"error": "Reference already exists"})
                return
            start = repo.at(body.get("startingPoint") or "main")
            assert start is not None
            repo.branches[tail] = [start]
            self.reply(200, {})
        elif action in ("", "revision"):
            self.info(key, repo, tail or "main")
        elif action == "tree":
            revision, _, folder = tail.partition("/")
            self.tree(repo, revision, folder)
        else:
            self.missing("EntryNotFound")

    def info(self, key: str, repo: Repo, revision: str) -> None:
        commit = repo.at(revision)
        if commit is None:
            self.missing("RevisionNotFound")
            return
        self.reply(
            200,
            {
                "id": key.split("/", 1)[1],
                "sha": commit.sha,
                "private": repo.private,
                "tags": [],
                "downloads": 0,
                "lastModified": "2026-01-01T00:00:00.000Z",
                "siblings": [{"rfilename": path} for path in sorted(commit.files)],
            },
        )

    def tree(self, repo: Repo, revision: str, folder: str) -> None:
        commit = repo.at(revision)
        inside = (
            [p for p in sorted(commit.files) if not folder or p.startswith(f"{folder}/")] if commit else []
        )
        if commit is None or (folder and not inside):
            self.missing("RevisionNotFound" if commit is None else "EntryNotFound")
            return
        rows: dict[str, dict[str, Any]] = {}
        for path in inside:
            rest = path.removeprefix(f"{folder}/") if folder else path
            if self.query.get("recursive") != ["true"] and "/" in rest:
                name = path[: len(path) - len(rest)] + rest.split("/")[0]
                rows[name] = {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
                continue
            content = commit.files[path]
            row = {"type": "file", "path": path, "size": len(content), "oid": git_sha(content)}
            if self.stub.with_lfs(path):
                digest = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
            rows[path] = row
        self.reply(200, list(rows.values()))

    def preupload(self, repo: Repo, revision: str, body: dict[str, Any]) -> None:
        commit = repo.at(revision)
        files = []
        for asked in body["files"]:
            path = asked["path"]
            row = {
                "path": path,
                "uploadMode": "lfs" if self.stub.with_lfs(path) else "regular",
                "shouldIgnore": False,
            }
            if commit is not None and path in commit.files:
                content = commit.files[path]
                lfs = self.stub.with_lfs(path)
                row["oid"] = hashlib.sha256(content).hexdigest() if lfs else git_sha(content)
            files.append(row)
        self.reply(200, {"files": files})

    def batch(self, key: str, body: dict[str, Any], token: str | None) -> None:
        if self.visible(key, token, write=True) is None:
            return
        objects = []
        for wanted in body["objects"]:
            row: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.stub.objects:
                row["actions"] = {
                    "upload": {"href": f"{self.stub.url}/objects/{wanted['oid']}"},
                    "verify": {"href": f"{self.stub.url}/objects/verify"},
                }
            objects.append(row)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def commit(self, key: str, repo: Repo, revision: str, lines: list[dict[str, Any]]) -> None:
        before = repo.at(revision)
        if before is None:
            self.missing("RevisionNotFound")
            return
        files = dict(before.files)
        header: dict[str, Any] = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                header = value
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.stub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        if header.get("parentCommit") not in (None, before.sha):
            self.reply(412, {"error": "A commit has happened since. Please refresh and try again."})
            return
        made = repo.add(revision, header.get("summary", ""), files)
        url = f"{self.stub.url}/{key}/commit/{made.sha}"
        self.reply(200, {"success": True, "commitOid": made.sha, "commitUrl": url, "hookOutput": ""})

    def resolve(self, key: str, revision: str, path: str, token: str | None) -> None:
        repo = self.visible(key, token)
        if repo is None:
            return
        commit = repo.at(revision)
        if commit is None or path not in commit.files:
            self.missing("RevisionNotFound" if commit is None else "EntryNotFound")
            return
        content = commit.files[path]
        lfs = self.stub.with_lfs(path)
        headers = {
            "X-Repo-Commit": commit.sha,
            "ETag": f'"{hashlib.sha256(content).hexdigest() if lfs else git_sha(content)}"',
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self.reply(200, content, {**headers, "Content-Length": str(len(content))})
            return
        start, end = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if start >= len(content):
            self.reply(416, b"", {**headers, "Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self.reply(206, content[start : end + 1], headers)
