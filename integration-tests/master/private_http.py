"""Git repositories over HTTP for who knows the password, on loopback.

``private_http.py PORT DIRECTORY USER PASSWORD``
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    """Hands each request of somebody who may ask to ``git http-backend``, which is a CGI program (RFC 3875)."""

    protocol_version = "HTTP/1.1"
    directory: str
    authorization: str

    def do_GET(self) -> None:
        """Answer a request."""
        if self.headers.get("Authorization") != self.authorization:
            self._answer(401, [("WWW-Authenticate", 'Basic realm="private"')], b"")
            return
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("Content-Length") or 0)
        environment = {
            **os.environ,
            "GIT_PROJECT_ROOT": self.directory,
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(length),
            "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding") or "",
            "HTTP_GIT_PROTOCOL": self.headers.get("Git-Protocol") or "",
            "REMOTE_USER": "somebody",
            "REMOTE_ADDR": self.client_address[0],
        }
        done = subprocess.run(
            ["git", "http-backend"], input=self.rfile.read(length), env=environment, capture_output=True, check=False
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        lines = [line.partition(":") for line in head.decode().splitlines()]
        headers = [(name, value.strip()) for name, _, value in lines]
        status = next((int(value.split()[0]) for name, value in headers if name == "Status"), 200)
        self._answer(status, [header for header in headers if header[0] != "Status"], body)

    do_POST = do_GET  # noqa: N815

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(port: str, directory: str, user: str, password: str) -> None:
    """Serve until the end."""
    Handler.directory = directory
    Handler.authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Handler)
    print("serving", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
