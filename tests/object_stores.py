"""An S3 server on this machine, and connections to it that are cut."""

import logging
import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest

BUCKET = "recordings"


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a new bucket; credentials and endpoint are in the environment."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        with s3_at(f"http://{host}:{port}"):
            fsspec.filesystem("s3").mkdir(BUCKET)
            yield f"s3://{BUCKET}"
    finally:
        server.stop()


@contextmanager
def s3_at(endpoint: str) -> Iterator[None]:
    """Inside, S3 is what answers at this address."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "user")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")  # of botocore, which would wait in between
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def put_folder(folder: Path, url: str) -> str:
    """Copies the files of a folder to a URL."""
    fs = fsspec.filesystem(url.partition("://")[0])
    for path in folder.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return url


class CuttingProxy:
    """Passes connections on to a server, and cuts as many large answers in their middle as `cuts` says."""

    def __init__(self, endpoint: str) -> None:
        host, _, port = endpoint.removeprefix("http://").partition(":")
        self.target = (host, int(port))
        self.cuts, self.done = 0, 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.target) as server:
            while True:
                ready, _, _ = select.select([client, server], [], [], 10)
                for one in ready:
                    try:
                        data = one.recv(1 << 16)
                    except OSError:
                        return
                    if not data:
                        return
                    if one is server and self.done < self.cuts and len(data) > 1000:
                        self.done += 1
                        client.sendall(data[: len(data) // 2])
                        return
                    (client if one is server else server).sendall(data)
                if not ready:
                    return
