"""A web server on loopback that serves a folder, counts what it sends, and fails as it is told."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

STALL_SECONDS = 1.5
# file and how often it was asked for this range: drop, truncate, short, stall, drip, a status
Fault = Callable[[str, int], str | None]


@dataclass
class Web:
    """What is served and what was asked: file and range of each request; bytes of bodies sent."""

    folder: Path
    ranges: bool = True
    fault: Fault = lambda name, times: None
    seconds: float = 0.0  # before each answer
    url: str = ""
    requests: list[tuple[str, str]] = field(default_factory=list)
    sent: int = 0
    under_way: int = 0
    most_under_way: int = 0

    def asked(self, name: str = "") -> list[tuple[str, str]]:
        """Requests for files whose names hold ``name``."""
        return [request for request in self.requests if name in request[0]]


@contextmanager
def served(folder: Path, **settings: Any) -> Iterator[Web]:
    """Serve ``folder`` for a while."""
    web, lock, times = Web(folder, **settings), threading.Lock(), Counter[tuple[str, str]]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 20  # headers and body in one packet: else each answer waits for an acknowledgement

        def do_GET(self) -> None:
            name, wanted = self.path.rpartition("/")[2], self.headers.get("Range", "")
            with lock:
                web.requests.append((name, wanted))
                web.under_way += 1
                web.most_under_way = max(web.most_under_way, web.under_way)
                times[name, wanted] += 1
                fault = web.fault(name, times[name, wanted])
            time.sleep(web.seconds)
            with lock:
                web.under_way -= 1
            path = web.folder / name
            if "/moved/" in self.path:
                fault = None
            if fault == "302":
                self.answer(302, b"", {"Location": f"/moved/{name}"})
            elif fault == "drop":
                self.close_connection = True
            elif fault and fault.isdigit():
                self.answer(int(fault), b"")
            elif not path.is_file():
                self.answer(404, b"")
            else:
                self.give(path.read_bytes(), wanted if web.ranges else "", fault)

        def give(self, content: bytes, wanted: str, fault: str | None) -> None:
            headers = {}
            if wanted:
                match = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted)
                assert match
                first, last = int(match[1]), min(int(match[2]), len(content) - 1)
                if first > last:
                    self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                    return
                headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
                content = content[first : last + 1]
            self.answer(206 if wanted else 200, content, headers, fault)

        def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None, fault: str | None = None) -> None:
            if fault == "short":
                body = body[: len(body) // 2]  # with a Content-Length that is so
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            try:
                if fault == "drip":
                    for byte in body:
                        self.wfile.write(bytes([byte]))
                        self.wfile.flush()
                        time.sleep(0.05)
                    return
                self.wfile.write(body[: len(body) // 2] if fault in ("truncate", "stall") else body)
                if fault == "stall":
                    self.wfile.flush()
                    time.sleep(STALL_SECONDS)
            except OSError:  # the other side has had enough
                self.close_connection = True
            with lock:
                web.sent += len(body)
            self.close_connection = self.close_connection or fault is not None

        def log_message(self, *words: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    web.url = f"http://127.0.0.1:{server.server_port}/sets/it"
    try:
        yield web
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
