"""A small model hub on 127.0.0.1: the endpoints that fetching a model needs, and the ways in which they fail.

Files of weights are redirected to another host name, as the real hub does, so that a token that leaks would be seen.
"""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


def commit(files: dict[str, bytes]) -> str:
    """Return a name for a set of files, of a git commit's form."""
    state = hashlib.sha1()
    for name in sorted(files):
        state.update(name.encode() + b"\0" + files[name])
    return state.hexdigest()


@dataclass
class Repo:
    """A model: files by revision, and what is wrong with it."""

    revisions: dict[str, dict[str, bytes]]
    token: str | None = None
    """Without this token its files are gated."""
    sizes: dict[str, int] = field(default_factory=dict)
    """What the hub says instead of a file's own size."""
    served: dict[str, bytes] = field(default_factory=dict)
    """What comes instead of a file's own content."""

    def find(self, revision: str) -> dict[str, bytes] | None:
        by_commit = {commit(files): files for files in self.revisions.values()}
        return self.revisions.get(revision) or by_commit.get(revision)


@dataclass
class Seen:
    """A request."""

    method: str
    path: str
    host: str
    range: str | None
    token: str | None


class Hub:
    """The server, as a context manager. ``drops``: after how many bytes the next answers with weights break off."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.seen: list[Seen] = []
        self.drops: list[int] = []
        self.stall: int | None = None
        """After how many bytes of weights nothing more comes."""
        self.ranges = True
        """Whether a part of a file can be asked for."""
        self.broken = False
        """Whether every answer is 500."""
        self.closing = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()

    def weights_asked(self) -> list[Seen]:
        """Return the requests for the content of weights."""
        return [s for s in self.seen if s.path.startswith("/cdn/") and s.method == "GET"]

    # ---- answers ----

    def answer(self, http: BaseHTTPRequestHandler, body: bool) -> None:
        path = urlsplit(http.path).path
        token = (http.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        host = http.headers["Host"].split(":")[0]
        self.seen.append(Seen(http.command, path, host, http.headers.get("Range"), token))
        parts = path.strip("/").split("/")
        if self.broken:
            return self.send(http, 500, b"broken", body)
        if parts[0] == "cdn":
            owner, name, revision, file = parts[1:]
            repo = self.repos[f"{owner}/{name}"]
            files = repo.find(revision) or {}
            return self.content(http, repo.served.get(file, files[file]), {}, body)
        if parts[0] == "api":
            parts = parts[2:]
        repo_id, rest = "/".join(parts[:2]), parts[2:]
        found = self.repos.get(repo_id)
        if found is None:
            return self.send(http, 404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        revision = rest[1] if len(rest) > 1 else "main"
        files = found.find(revision)
        if files is None:
            return self.send(http, 404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        if path.startswith("/api/"):
            return self.facts(http, repo_id, found, files, listing=bool(rest) and rest[0] == "tree")
        return self.resolve(http, repo_id, found, files, rest[2], token, body)

    def facts(
        self, http: BaseHTTPRequestHandler, repo_id: str, repo: Repo, files: dict[str, bytes], listing: bool
    ) -> None:
        if not listing:
            value: Any = {"id": repo_id, "sha": commit(files), "private": False, "tags": [], "siblings": []}
            return self.send(http, 200, json.dumps(value).encode(), True)
        value = []
        for name, content in files.items():
            size = repo.sizes.get(name, len(content))
            entry: dict[str, Any] = {"type": "file", "path": name, "size": size, "oid": git(content)}
            if is_large(name):
                entry["lfs"] = {"oid": sha(content), "size": size, "pointerSize": 134}
            value.append(entry)
        return self.send(http, 200, json.dumps(value).encode(), True)

    def resolve(
        self,
        http: BaseHTTPRequestHandler,
        repo_id: str,
        repo: Repo,
        files: dict[str, bytes],
        name: str,
        token: str | None,
        body: bool,
    ) -> None:
        if repo.token is not None and token != repo.token:
            return self.send(http, 403 if token else 401, b"{}", body, {"X-Error-Code": "GatedRepo"})
        if name not in files:
            return self.send(http, 404, b"{}", body, {"X-Error-Code": "EntryNotFound"})
        content, headers = files[name], {"X-Repo-Commit": commit(files)}
        if not is_large(name):
            return self.content(http, content, {**headers, "ETag": f'"{git(content)}"'}, body)
        headers |= {"X-Linked-Etag": f'"{sha(content)}"', "X-Linked-Size": str(repo.sizes.get(name, len(content)))}
        where = f"http://localhost:{self.port}/cdn/{repo_id}/{commit(files)}/{name}"
        return self.send(http, 302, b"", body, {**headers, "Location": where})

    def content(self, http: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str], body: bool) -> None:
        asked, status = http.headers.get("Range"), 200
        if asked and self.ranges:
            begin = int(asked.removeprefix("bytes=").split("-")[0])
            headers |= {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"}
            content, status = content[begin:], 206
        large = http.path.startswith("/cdn/") and body
        cut = self.drops.pop(0) if large and self.drops else self.stall if large else None
        if cut is None or cut >= len(content):
            return self.send(http, status, content, body, headers)
        self.send(http, status, content[:cut], body, {**headers, "Content-Length": str(len(content))})
        http.wfile.flush()
        if self.stall is not None:
            self.closing.wait(60)
        http.close_connection = True
        return None

    @staticmethod
    def send(
        http: BaseHTTPRequestHandler, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None
    ) -> None:
        http.send_response(status)
        for key, value in {"Content-Length": str(len(content)), "Accept-Ranges": "bytes", **(headers or {})}.items():
            http.send_header(key, value)
        http.end_headers()
        if body:
            http.wfile.write(content)


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin"))


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
