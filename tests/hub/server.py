"""A Hub on the loopback interface: the endpoints that huggingface_hub calls to push and pull."""

import contextlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pulling import Pulling
from pushing import Pushing
from store import Fault, RefusedError, Store

KIND = r"/api/(?P<kind>models|spaces)/(?P<repo>[^/]+/[^/]+)"


class Handler(Pulling, Pushing, http.server.BaseHTTPRequestHandler):
    """Answers one request by the first route that matches; the store is shared by all."""

    protocol_version = "HTTP/1.1"
    store: Store
    address: str

    ROUTES = (
        ("GET", r"/api/whoami-v2", "whoami"),
        ("POST", r"/api/repos/create", "create"),
        ("DELETE", r"/api/repos/delete", "delete"),
        ("POST", r"/api/validate-yaml", "validate_yaml"),
        ("GET", KIND + r"/refs", "refs"),
        ("GET", KIND + r"(/revision/(?P<revision>[^/]+))?", "info"),
        ("GET", KIND + r"/tree/(?P<revision>[^/]+)(/(?P<path>.+))?", "tree"),
        ("POST", KIND + r"/paths-info/(?P<revision>[^/]+)", "paths_info"),
        ("POST", KIND + r"/preupload/(?P<revision>[^/]+)", "preupload"),
        ("POST", KIND + r"/commit/(?P<revision>[^/]+)", "commit"),
        ("POST", KIND + r"/(?P<what>branch|tag)/(?P<revision>[^/]+)", "add_ref"),
        ("DELETE", KIND + r"/(?P<what>branch|tag)/(?P<revision>[^/]+)", "delete_ref"),
        ("POST", r"/(?P<kind>spaces/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
        ("POST", r"/(?P<kind>spaces/)?(?P<repo>[^/]+/[^/]+)\.git/info/lfs/objects/verify", "lfs_verify"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})(/(?P<part>\d+))?", "lfs_put"),
        ("POST", r"/lfs/(?P<oid>[0-9a-f]{64})/complete", "lfs_complete"),
        ("GET", r"/cdn/(?P<oid>[0-9a-f]{64})", "cdn"),
        ("GET", r"/(?P<kind>spaces/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self) -> None:
        if self.store.is_down:
            self.close_connection = True
            return
        self.store.log.append(f"{self.command} {unquote(self.path)}")
        self.url = urlsplit(self.path)
        self.query = parse_qs(self.url.query)
        self.fault: Fault | None = self.store.fault_of(self.command, unquote(self.path))
        try:
            self.body = self.read_body()
            if self.fault and self.fault.status:
                raise RefusedError(self.fault.status, "asked to fail")
            self.user = self.store.user_of(self.headers.get("Authorization"))
            for method, pattern, name in self.ROUTES:
                found = re.fullmatch(pattern, self.url.path)
                if found and method == self.command.replace("HEAD", "GET"):
                    with self.store.lock:
                        reply = getattr(self, name)(
                            **{key: unquote(value) for key, value in found.groupdict().items() if value}
                        )
                    if reply is not None:
                        self.send_json(reply)
                    return
            raise RefusedError(404, f"no route for {self.command} {self.path}")
        except RefusedError as refused:
            self.send(refused.status, json.dumps(refused.body).encode(), **refused.headers)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def read_body(self) -> bytes:
        limit = None if self.fault is None or self.command != "PUT" else self.fault.cut_after
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts, total = [], 0
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                total += size
                if limit is not None and total >= limit:
                    raise ConnectionAbortedError
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        length = int(self.headers.get("Content-Length") or 0)
        if limit is not None:
            self.rfile.read(min(limit, length))
            raise ConnectionAbortedError
        return self.rfile.read(length)

    def send(self, status: int, content: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.cut_after is not None:
            self.wfile.write(content[: self.fault.cut_after])
            self.wfile.flush()
            raise ConnectionAbortedError
        self.wfile.write(content)

    def send_json(self, value: Any, **headers: str) -> None:
        self.send(200, json.dumps(value).encode(), Content_Type="application/json", **headers)


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that were killed."""


@contextlib.contextmanager
def running_hub() -> Iterator[tuple[Store, str]]:
    """Run a Hub; the value is what it keeps, and its address."""
    store = Store()
    handler = type("BoundHandler", (Handler,), {"store": store})
    with _Server(("127.0.0.1", 0), handler) as server:
        handler.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield store, handler.address
        finally:
            store.is_down = True
            server.shutdown()
