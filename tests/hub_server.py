"""A hub on 127.0.0.1 for tests: the few routes of the hub's HTTP API that a download uses."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import unquote, urlsplit


@dataclass
class HubRepo:
    """A repository with one commit, on the branch `main`."""

    files: dict[str, bytes]
    commit: str = "a" * 40
    gated: bool = False
    private: bool = False

    @classmethod
    def from_folder(cls, folder: Path, *, gated: bool = False) -> HubRepo:
        files = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}
        return cls(files, gated=gated)


class HubServer:
    """`with HubServer({"org/name": HubRepo(...)}) as hub:` serves at `hub.url`.

    The names of datasets begin with `datasets/`, as in the paths of the hub's pages.
    `hub.requests` lists the method and path of every request so far.
    """

    def __init__(self, repos: dict[str, HubRepo]) -> None:
        self.repos = repos
        self.requests: list[tuple[str, str]] = []
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def downloaded(self) -> set[str]:
        """The names of the files that were sent."""
        gets = (path for method, path in self.requests if method == "GET" and "/resolve/" in path)
        return {path.split("/resolve/")[1].split("/", 1)[1] for path in gets}

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_hub: HubServer

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing: the test reads `requests`."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server_hub.requests.append((self.command, path))
        is_api = path.startswith("/api/")
        parts = path.removeprefix("/api").removeprefix("/models").strip("/").split("/")
        length = 3 if parts[0] == "datasets" else 2
        repo_id, rest = "/".join(parts[:length]), parts[length:]
        repo = self.server_hub.repos.get(repo_id)
        if repo is None:
            self._send(404, headers={"X-Error-Code": "RepoNotFound"})
        elif len(rest) > 1 and rest[1] not in ("main", repo.commit):
            self._send(404, headers={"X-Error-Code": "RevisionNotFound"})
        elif is_api and rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": _oid(data)}
                for name, data in repo.files.items()
            ]
            self._send(200, json.dumps(entries).encode())
        elif is_api:
            siblings = [{"rfilename": name, "size": len(d)} for name, d in repo.files.items()]
            plain_id = repo_id.removeprefix("datasets/")
            info = {"id": plain_id, "sha": repo.commit, "siblings": siblings}
            info["private"] = repo.private
            self._send(200, json.dumps(info).encode())
        elif repo.gated:
            self._send(401, headers={"X-Error-Code": "GatedRepo"})
        else:
            data = repo.files["/".join(rest[2:])]
            headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": repo.commit}
            self._send(200, data, headers)

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
