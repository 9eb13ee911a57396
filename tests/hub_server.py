"""A Hugging Face hub on this machine, with the datasets in a folder; it answers what hf:// URLs ask."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlparse

COMMIT = "0123abcd" * 5


@contextmanager
def hub_server(folder: Path) -> Iterator[str]:
    """The address of a hub whose dataset `user/name` is in `folder/user/name`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]
            if parts[:2] == ["api", "datasets"] and (folder / parts[2] / parts[3]).is_dir():
                self._api("/".join(parts[2:4]), parts[4:])
            elif parts[0] == "datasets" and parts[3:4] == ["resolve"]:
                self._file(folder.joinpath(*parts[1:3], *parts[5:]))
            else:
                self._answer(404, b"{}")

        do_HEAD = do_GET

        def do_POST(self) -> None:
            """paths-info, which a client before 1.0 asks for."""
            parts = [unquote(part) for part in urlparse(self.path).path.strip("/").split("/")]
            root = folder.joinpath(*parts[2:4])
            asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
            found = [_entry(root / name, root) for name in asked if (root / name).exists()]
            self._answer(200, json.dumps(found).encode())

        def _api(self, name: str, rest: list[str]) -> None:
            if rest[:1] != ["tree"]:
                root = folder / name
                paths = sorted(path for path in root.rglob("*") if path.is_file())
                files = [{"rfilename": path.relative_to(root).as_posix()} for path in paths]
                self._answer(200, json.dumps({"id": name, "sha": COMMIT, "siblings": files}).encode())
                return
            root = folder / name
            below = root.joinpath(*rest[2:])
            recursive = "recursive=" in self.path and "recursive=false" not in self.path.lower()
            found = [_entry(path, root) for path in sorted(below.rglob("*") if recursive else below.glob("*"))]
            self._answer(200 if below.is_dir() else 404, json.dumps(found).encode())

        def _file(self, path: Path) -> None:
            if not path.is_file():
                self._answer(404, b"")
                return
            data, status, headers = path.read_bytes(), 200, {"ETag": f'"{_entry(path, path)["oid"]}"'}
            if (asked := self.headers.get("Range", "")).startswith("bytes="):
                start, _, end = asked.removeprefix("bytes=").partition("-")
                stop = min(int(end) + 1 if end else len(data), len(data))
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                data, status = data[int(start) : stop], 206
            self._answer(status, data, {**headers, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

        def _answer(self, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _entry(path: Path, root: Path) -> dict[str, object]:
    name = path.relative_to(root).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": "0"}
    data = path.read_bytes()
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
