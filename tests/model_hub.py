"""A Hugging Face hub on this machine for models: it takes commits and serves them over HTTP to the hub's own client."""

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
from urllib.parse import parse_qs, unquote, urlparse

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

Tree = dict[str, bytes]
WRITER, READER = "hf_writer_token", "hf_reader_token"  # of `lab`, and of someone who may only read


@dataclass
class Repository:
    """Trees by commit, and the commit of each branch and tag."""

    private: bool = False
    gated: bool = False
    commits: dict[str, Tree] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, ref: str, tree: Tree, message: str = "") -> str:
        number = hashlib.sha1(f"{ref} {len(self.commits)}".encode()).hexdigest()
        self.commits[number], self.refs[ref] = dict(tree), number
        self.messages.append(message)
        return number

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision) or (revision if revision in self.commits else None)


class ModelHub:
    """The repositories, and every request that came."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # large files by their SHA-256
        self.requests: list[tuple[str, str]] = []
        self.address = ""

    def add(self, name: str, folder: Path | None = None, **settings: bool) -> Repository:
        """A new repository with the files of a folder."""
        repository = self.repositories[name] = Repository(**settings)
        files = [] if folder is None else [path for path in folder.rglob("*") if path.is_file()]
        repository.commit("main", {path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
        return repository

    def tree(self, name: str, revision: str = "main") -> Tree:
        repository = self.repositories[name]
        return repository.commits[str(repository.find(revision))]


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".mp4", ".png", ".npy"))


def entry(path: str, data: bytes) -> dict[str, object]:
    """A file in the answer to a listing."""
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    found: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": oid}
    if is_large(path):
        sha256 = hashlib.sha256(data).hexdigest()
        found |= {"oid": "0" * 40, "lfs": {"oid": sha256, "size": len(data), "pointerSize": 130}}
    return found


class Refusal(Exception):
    """An answer that is an error of the hub."""

    def __init__(self, status: int, code: str = "", text: str = "refused") -> None:
        self.status, self.code, self.text = status, code, text


def handler_of(hub: ModelHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status: int, data: bytes | object, headers: dict[str, str] | None = None) -> None:
            body = data if isinstance(data, bytes) else json.dumps(data).encode()
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def handle_request(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            self.body = self.rfile.read(length)
            url = urlparse(self.path)
            self.query, path = parse_qs(url.query), url.path
            hub.requests.append((self.command, path))
            try:
                for method, pattern, work in self.ROUTES:
                    match = re.fullmatch(pattern, path)
                    if match and self.command in method.split():
                        work(self, *map(unquote, match.groups("")))
                        return
                raise Refusal(404, "", f"no route {self.command} {path}")
            except Refusal as refusal:
                headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.text} if refusal.code else {}
                self.answer(refusal.status, {"error": refusal.text}, headers)

        do_GET = do_HEAD = do_POST = do_PUT = handle_request

        def login(self) -> str:
            return self.headers.get("Authorization", "").removeprefix("Bearer ")

        def readable(self, name: str) -> Repository:
            repository = hub.repositories.get(name)
            if repository is None or (repository.private and self.login() not in (WRITER, READER)):
                raise Refusal(404 if self.login() else 401, "RepoNotFound", "Repository not found")
            return repository

        def writable(self, name: str) -> Repository:
            self.check_writer()
            return self.readable(name)

        def check_writer(self) -> None:
            if self.login() != WRITER:
                raise Refusal(403 if self.login() else 401, "", "You don't have the rights")

        def commit_of(self, name: str, revision: str) -> tuple[Repository, str]:
            repository = self.readable(name)
            found = repository.find(revision or "main")
            if found is None:
                raise Refusal(404, "RevisionNotFound", "Invalid rev id")
            return repository, found

        def info(self, name: str, revision: str) -> None:
            repository, commit = self.commit_of(name, revision)
            siblings = [{"rfilename": path} for path in repository.commits[commit]]
            self.answer(200, {"id": name, "sha": commit, "private": repository.private, "siblings": siblings})

        def list_tree(self, name: str, revision: str) -> None:
            repository, commit = self.commit_of(name, revision)
            self.answer(200, [entry(path, data) for path, data in repository.commits[commit].items()])

        def file(self, name: str, revision: str, path: str) -> None:
            repository, commit = self.commit_of(name, revision)
            if repository.gated:
                raise Refusal(403, "GatedRepo", "Access to model is restricted")
            data = repository.commits[commit].get(path)
            if data is None:
                raise Refusal(404, "EntryNotFound", "Entry not found")
            found = entry(path, data)
            etag = found["lfs"]["oid"] if "lfs" in found else found["oid"]  # type: ignore[index]
            self.answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"})

        def create(self) -> None:
            self.check_writer()
            asked = json.loads(self.body)
            name = f"{asked['organization']}/{asked['name']}"
            hub.add(name, private=bool(asked.get("private")) or asked.get("visibility") == "private")
            hub.repositories[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
            self.answer(200, {"url": f"{hub.address}/{name}"})

        def branch(self, name: str, branch: str) -> None:
            repository = self.writable(name)
            repository.refs[branch] = repository.refs["main"]
            self.answer(200, {})

        def preupload(self, name: str, revision: str) -> None:
            self.writable(name)
            files = [
                {"path": f["path"], "uploadMode": "lfs" if is_large(f["path"]) else "regular", "shouldIgnore": False}
                for f in json.loads(self.body)["files"]
            ]
            self.answer(200, {"files": files})

        def batch(self, name: str) -> None:
            self.writable(name)
            objects = [
                {**asked, "actions": {"upload": {"href": f"{hub.address}/storage/{asked['oid']}"}}}
                for asked in json.loads(self.body)["objects"]
            ]
            self.answer(200, {"transfer": "basic", "objects": objects})

        def store(self, oid: str) -> None:
            assert hashlib.sha256(self.body).hexdigest() == oid
            hub.objects[oid] = self.body
            self.answer(200, b"")

        def commit(self, name: str, revision: str) -> None:
            repository = self.writable(name)
            lines = [json.loads(line) for line in self.body.splitlines()]
            tree = dict(repository.commits[repository.refs[revision]])
            for line in lines[1:]:
                value = line["value"]
                if line["key"] == "file":
                    tree[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    tree[value["path"]] = hub.objects[value["oid"]]
                else:
                    del tree[value["path"]]
            header = lines[0]["value"]
            parent = header.get("parentCommit")
            if parent is not None and parent != repository.refs[revision]:
                raise Refusal(412, "", "The expected parent commit does not match")
            pull = "create_pr" in self.query
            number = repository.commit("refs/pr/1" if pull else revision, tree, header["summary"])
            done = {"commitUrl": f"{hub.address}/{name}/commit/{number}", "commitOid": number}
            self.answer(200, {**done, "pullRequestUrl": f"{hub.address}/{name}/discussions/1" if pull else None})

        def validate(self) -> None:
            self.answer(200, {"warnings": [], "errors": []})

        def log_message(self, *_: object) -> None:
            pass

        NAME = "([^/]+/[^/]+)"
        ROUTES = (
            ("POST", "/api/repos/create", create),
            ("POST", "/api/validate-yaml", validate),
            ("GET", f"/api/models/{NAME}(?:/revision/(.+))?", info),
            ("GET", f"/api/models/{NAME}/tree/([^/]+)/?", list_tree),
            ("POST", f"/api/models/{NAME}/branch/(.+)", branch),
            ("POST", f"/api/models/{NAME}/preupload/(.+)", preupload),
            ("POST", f"/api/models/{NAME}/commit/(.+)", commit),
            ("POST", rf"/{NAME}\.git/info/lfs/objects/batch", batch),
            ("PUT", "/storage/(.+)", store),
            ("GET HEAD", f"/{NAME}/resolve/([^/]+)/(.+)", file),
        )

    return Handler


@contextmanager
def model_hub() -> Iterator[ModelHub]:
    """A hub that answers at `hub.address`."""
    hub = ModelHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def offline() -> Iterator[None]:
    """As in a process with HF_HUB_OFFLINE; a client before 1.0 follows it when it opens a session, and keeps that."""
    new_sessions = getattr(huggingface_hub.utils, "reset_sessions", lambda: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        new_sessions()
        yield
    new_sessions()


def use_hub(monkeypatch: pytest.MonkeyPatch, address: str, cache: Path) -> None:
    """The hub's client asks this hub, keeps what it gets in `cache`, and finds no login of this machine."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    for module in (constants, file_download):  # the oldest client has a name of its own for it
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no_token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # another protocol, another server
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
