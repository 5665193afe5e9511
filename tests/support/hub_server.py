"""A stand-in for the hub's HTTP interface, for the real client: files, branches, commits, uploads, rights.

As a program (``python -m tests.support.hub_server``) it prints how to reach it, and runs until it is ended.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

TOKEN = "hf_ownertoken"
_TEXT = (".md", ".json", ".txt")


@dataclass
class Repo:
    """One repository.

    Attributes:
        private: Whether only `TOKEN` may read it.
        commits: Files by path, by commit, in their order.
        branches: The commit of each branch.
    """

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """Add a commit with these files beside those that the branch has; return its id."""
        there = self.commits.get(self.branches.get(branch, ""), {}) | files
        oid = hashlib.sha1(f"{len(self.commits)}{sorted(there)}".encode()).hexdigest()
        self.commits[oid] = there
        self.branches[branch] = oid
        return oid

    def at(self, revision: str) -> str | None:
        """Return the commit that a revision means."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class HubServer(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: By name.
        requests: Method and path of every request, in their order.
        cut_after: Bytes after which downloads break off; None for complete ones.
        pull_requests: The files of those that were opened.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.cut_after: int | None = None
        self.objects: dict[str, bytes] = {}
        self.pull_requests: list[dict[str, bytes]] = []

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def downloads(self, name: str) -> int:
        """Return how many times a file of this name was sent."""
        return sum(one.startswith("GET") and one.endswith(name) for one in self.requests)


class _Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        parts = self._parts()
        if parts[:2] == ["api", "models"]:
            repo = self._repo("/".join(parts[2:4]))
            if repo is not None:
                self._json({"id": "/".join(parts[2:4]), "sha": repo.at("main")})
            return
        self._file()

    def do_PUT(self) -> None:
        content = self._body()
        self.server.objects[hashlib.sha256(content).hexdigest()] = content
        self._json({})

    def do_POST(self) -> None:
        parts, body = self._parts(), self._body()
        if parts == ["api", "validate-yaml"]:
            self._json({"errors": [], "warnings": []})
        elif self._token() is None:
            self._refuse(401, "RepoNotFound", "Invalid username or password.")
        elif self._token() != TOKEN:
            self._refuse(403, "", "you have no write access")
        elif parts == ["api", "repos", "create"]:
            self._create(json.loads(body))
        elif parts[-1] == "batch":
            self._batch(json.loads(body))
        elif (repo := self._repo("/".join(parts[2:4]))) is not None:
            self._change(repo, parts[4:], body)

    def _create(self, wanted: dict[str, Any]) -> None:
        name = "/".join(filter(None, (wanted["organization"], wanted["name"])))
        if name in self.server.repositories:
            self._json({"error": "exists", "url": f"{self.server.url}/{name}"}, code=409)
            return
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repo = self.server.repositories[name] = Repo(private)
        repo.commit({".gitattributes": b""})
        self._json({"url": f"{self.server.url}/{name}", "id": name})

    def _batch(self, wanted: dict[str, Any]) -> None:
        actions = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/objects/{one['oid']}", "header": {}}}}
            for one in wanted["objects"]
        ]
        self._json({"transfer": "basic", "objects": actions})

    def _change(self, repo: Repo, what: list[str], body: bytes) -> None:
        action, branch = what[0], what[1]
        if action == "branch":
            repo.branches.setdefault(branch, repo.branches["main"])
            self._json({})
        elif action == "preupload":
            files = [
                {"path": one["path"], "shouldIgnore": False, "oid": None,
                 "uploadMode": "regular" if one["path"].endswith(_TEXT) else "lfs"}
                for one in json.loads(body)["files"]
            ]  # fmt: skip
            self._json({"files": files})
        else:
            self._commit(repo, branch, dict(self._committed(body)))

    def _commit(self, repo: Repo, branch: str, files: dict[str, bytes]) -> None:
        page = f"{self.server.url}/{'/'.join(self._parts()[2:4])}"
        oid, found = "0" * 40, {}
        if "create_pr=1" in self.path:
            self.server.pull_requests.append(files)
            found["pullRequestUrl"] = f"{page}/discussions/1"
        else:
            oid = repo.commit(files, branch)
        self._json({"commitUrl": f"{page}/commit/{oid}", "commitOid": oid} | found)

    def _committed(self, body: bytes) -> Iterator[tuple[str, bytes]]:
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                yield value["path"], base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                yield value["path"], self.server.objects[value["oid"]]

    def _file(self) -> None:
        parts = self._parts()
        repo = self._repo("/".join(parts[:2]))
        if repo is None:
            return
        commit, name = repo.at(parts[3]), "/".join(parts[4:])
        if commit is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {parts[3]}")
            return
        content = repo.commits[commit].get(name)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        digest = hashlib.sha256(content).hexdigest()
        self._send(200, content, {"X-Repo-Commit": commit, "ETag": f'"{digest}"'})

    def _repo(self, name: str) -> Repo | None:
        repo = self.server.repositories.get(name)
        if repo is None or (repo.private and self._token() != TOKEN):
            # As the hub does: who may not read a repository does not learn that it exists.
            self._refuse(401 if self._token() is None else 404, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _refuse(self, code: int, kind: str, text: str, headers: dict[str, str] | None = None) -> None:
        named = {"X-Error-Code": kind, "X-Error-Message": text} | (headers or {})
        self._send(code, json.dumps({"error": text}).encode(), named)

    def _json(self, value: Any, code: int = 200) -> None:
        self._send(code, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, code: int, content: bytes, headers: dict[str, str]) -> None:
        cut = self.server.cut_after if "ETag" in headers and self.command == "GET" else None
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        self.close_connection = cut is not None

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _parts(self) -> list[str]:
        path = unquote(urlsplit(self.path).path).strip("/")
        if not self.server.requests or self.server.requests[-1] != f"{self.command} {path}":
            self.server.requests.append(f"{self.command} {path}")
        return path.split("/")

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None


@contextmanager
def serving(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run a hub, and point the client of this process to it: online, with an empty cache and no token."""
    server = HubServer()
    settings = {
        "ENDPOINT": server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_XET": True,  # its storage has a protocol of its own
        "HF_TOKEN_PATH": str(cache / "token"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    # The client waits between two tries.
    impatient = SimpleNamespace(**vars(time) | {"sleep": lambda _: None})
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", impatient)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    huggingface_hub.close_session()
    thread.start()
    try:
        yield server
    finally:
        huggingface_hub.close_session()  # its open connections would outlive the server
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    hub = HubServer()
    # The environment in which another process reaches it.
    found = {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    print(json.dumps(found), flush=True)
    hub.serve_forever()
