"""A local HTTP server of files that cuts connections, stalls, lies and refuses."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

from seq2exp.data_tools.fetch import PRESETS, PublicFile


class Server(http.server.ThreadingHTTPServer):
    """Serves `files`, path -> bytes; the first entries of `faults` spoil one answer each."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.ranges = True
        self.asked: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.asked.append((self.path, asked))
        fault = self.server.faults.pop(0) if self.server.faults else ""
        body = self.server.files.get(self.path)
        if body is None or fault.isdigit():
            self.send_error(int(fault or 404))
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.server.ranges else 0
        if start >= len(body) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if fault != "no length":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        part = body[start:]
        if fault in ("cut", "no length"):
            part = part[: len(part) // 2]
        elif fault == "stall":
            self.wfile.write(part[: len(part) // 3])
            self.wfile.flush()
            time.sleep(0.6)
            part = b""
        elif fault == "other bytes":
            part = bytes(len(part))
        try:
            for first in range(0, len(part), 50_000):
                self.wfile.write(part[first : first + 50_000])
        except OSError:
            pass  # the client went away
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def mirrored(preset: str, bodies: Mapping[str, bytes]) -> tuple[dict[str, bytes], tuple[PublicFile, ...]]:
    """A preset whose files are `bodies`, role -> content: what a mirror serves, path -> content, and the preset."""
    served, files = {}, []
    for file in PRESETS[preset]:
        body, host, path = bodies[file.role], urlsplit(file.url).netloc, urlsplit(file.url).path
        if file.kind == "portal":
            page = {"md5sum": hashlib.md5(body).hexdigest(), "file_size": len(body)}
            if "4dn" in host:
                page |= {"open_data_url": f"https://open.s3.test/{file.name}", "href": "/login"}
                served[f"/open.s3.test/{file.name}"] = body
            else:
                page["href"] = f"{path}@@download/{file.name}"
                served[f"/{host}{page['href']}"] = body
            served[f"/{host}{path}?format=json"] = json.dumps(page).encode()
        else:
            served[f"/{host}{path}"] = body
        files.append(replace(file, md5=hashlib.md5(body).hexdigest() if file.md5 else None))
    return served, tuple(files)
