"""The hub of `hub_server`, taking uploads: repositories, large files, commits. On 127.0.0.1."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from typing import Any
from urllib.parse import unquote, urlsplit

import yaml

from hub_server import HubRepo, HubServer, _Handler, _oid

TOKEN = "hf_" + "w" * 34  # may write under the name `me`
READ_TOKEN = "hf_" + "r" * 34
LARGE = (".safetensors", ".gguf")


class UploadHub(HubServer):
    """`with UploadHub() as hub:`; what was committed is in `hub.repos`.

    Args:
        breaks: so many uploads of large files lose their connection half way.
        refuses: status of every answer to a new repository.

    Attributes:
        large: sha256 -> bytes of the large files that arrived.
        bodies: path and body of every POST so far.
    """

    def __init__(
        self, repos: dict[str, HubRepo] | None = None, *, breaks: int = 0, refuses: int = 0
    ) -> None:
        super().__init__(repos or {})
        self.breaks = breaks
        self.refuses = refuses
        self.large: dict[str, bytes] = {}
        self.bodies: list[tuple[str, bytes]] = []
        hub = self

        class Handler(_UploadHandler):
            server_hub = hub

        self._server.RequestHandlerClass = Handler


class _UploadHandler(_Handler):
    server_hub: UploadHub

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.server_hub.requests.append(("POST", path))
        self.server_hub.bodies.append((path, body))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif token not in (TOKEN, READ_TOKEN):
            self._reply(401, {"error": "Invalid credentials in Authorization header"})
        elif path == "/api/repos/create":
            self._create(json.loads(body), token)
        elif path.endswith("/info/lfs/objects/batch"):
            self._batch(json.loads(body)["objects"])
        elif "/preupload/" in path:
            self._preupload(self._repo_of(path), json.loads(body)["files"])
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            self._commit(path, self._repo_of(path), lines)

    def do_PUT(self) -> None:
        hub = self.server_hub
        path = urlsplit(self.path).path
        hub.requests.append(("PUT", path))
        if hub.breaks:
            hub.breaks -= 1
            self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self._body()
        sha256 = path.rpartition("/")[2]
        if hashlib.sha256(body).hexdigest() != sha256:
            self._reply(400, {"error": "other bytes than were told"})
            return
        hub.large[sha256] = body
        self._reply(200, {})

    def _create(self, wanted: dict[str, Any], token: str) -> None:
        hub, owner = self.server_hub, wanted["organization"] or "me"
        name = f"{owner}/{wanted['name']}"
        if hub.refuses:
            self._reply(hub.refuses, {"error": "the stand-in was told to refuse"})
        elif name in hub.repos:
            url = f"{hub.url}/{name}"
            self._reply(409, {"error": "You already created this model repo", "url": url})
        elif owner != "me" or token != TOKEN:
            self._reply(403, {"error": f"You don't have the rights to create under {owner}"})
        else:
            private = wanted.get("visibility") == "private"  # the real one is public by default
            hub.repos[name] = HubRepo({}, private=private)
            self._reply(200, {"url": f"{hub.url}/{name}"})

    def _validate(self, content: str) -> None:
        try:
            header = yaml.safe_load(content.split("---\n")[1])
            errors = [] if isinstance(header, dict) else [{"message": "no mapping"}]
        except (yaml.YAMLError, IndexError) as error:
            errors = [{"message": str(error)}]
        self._reply(400 if errors else 200, {"errors": errors, "warnings": []})

    def _preupload(self, repo: HubRepo, files: list[dict[str, Any]]) -> None:
        answers = []
        for file in files:
            large = file["path"].endswith(LARGE)
            there = repo.files.get(file["path"])
            oid = there and (hashlib.sha256(there).hexdigest() if large else _oid(there))
            mode = "lfs" if large else "regular"
            answers.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        self._reply(200, {"files": answers})

    def _batch(self, objects: list[dict[str, Any]]) -> None:
        hub = self.server_hub
        for one in objects:
            if one["oid"] not in hub.large:
                one["actions"] = {"upload": {"href": f"{hub.url}/lfs/{one['oid']}"}}
        self._reply(200, {"transfer": "basic", "objects": objects})

    def _commit(self, path: str, repo: HubRepo, lines: list[dict[str, Any]]) -> None:
        added = {}
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                added[value["path"]] = self.server_hub.large[value["oid"]]
        repo.files.update(added)
        repo.commit = hashlib.sha1(repr(sorted(repo.files)).encode()).hexdigest()
        name = "/".join(path.split("/")[3:5])
        url = f"{self.server_hub.url}/{name}/commit/{repo.commit}"
        self._reply(200, {"commitUrl": url, "commitOid": repo.commit})

    def _repo_of(self, path: str) -> HubRepo:
        return self.server_hub.repos["/".join(path.split("/")[3:5])]

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _reply(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
