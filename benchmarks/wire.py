"""HTTP requests as bytes, and a connection that sends them without ever blocking.

No HTTP library: the load generator shares the cores with the server that it measures.
"""

from __future__ import annotations

import contextlib
import errno
import mimetypes
import re
import selectors
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Address = tuple[str, int]
RECEIVE_BYTES = 1 << 16
BROKEN = 0  # the status of an answer that never came
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CHUNKED = re.compile(rb"(?i)\r\ntransfer-encoding: *chunked")
_CLOSE = re.compile(rb"(?i)\r\nconnection: *close")


@dataclass(frozen=True)
class Request:
    """One HTTP request."""

    path: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    method: str = "POST"

    def encode(self, host: str) -> bytes:
        """Return the bytes to send."""
        lines = [
            f"{self.method} {self.path} HTTP/1.1",
            f"Host: {host}",
            *(f"{name}: {value}" for name, value in self.headers),
            f"Content-Length: {len(self.body)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + self.body


def raw_requests(path: str, images: Path) -> list[Request]:
    """Return a request for each image file of a folder, the file as its body."""
    return [
        Request(
            path,
            file.read_bytes(),
            (("Content-Type", mimetypes.guess_type(file.name)[0] or "application/octet-stream"),),
        )
        for file in sorted(images.iterdir())
    ]


def write_requests(requests: Sequence[Request], host: str, folder: Path) -> list[Path]:
    """Write each request as it is sent to a file of its own, and return the files in order."""
    files = [folder / f"{number:06}.http" for number in range(len(requests))]
    for file, request in zip(files, requests, strict=True):
        file.write_bytes(request.encode(host))
    return files


class Connection:
    """One connection with at most one request under way."""

    def __init__(self, address: Address, selector: selectors.BaseSelector) -> None:
        self.due = 0.0  # when the request under way was to be sent
        self.is_reusable = True
        self._selector = selector
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._head_bytes = 0
        self._body_bytes: int | None = None  # None: up to the last chunk, or to the end
        self._is_chunked = False
        self.socket = socket.socket()
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        status = self.socket.connect_ex(address)
        if status not in (0, errno.EINPROGRESS):
            self.socket.close()
            raise ConnectionError(f"cannot connect to {address}: {errno.errorcode.get(status)}")
        self._events = selectors.EVENT_READ
        selector.register(self.socket, self._events, self)

    def send(self, request: bytes, due: float) -> None:
        """Begin to send. Raises `OSError` if the connection is broken."""
        self.due = due
        self._unsent = memoryview(request)
        self._received.clear()
        self._head_bytes, self._body_bytes, self._is_chunked = 0, None, False
        self._write()

    def progress(self, events: int) -> int | None:
        """Do what the selector says is possible. Returns the status of a complete answer, `BROKEN`
        if the connection broke, else None.
        """
        try:
            if events & selectors.EVENT_WRITE:
                self._write()
            return self._read() if events & selectors.EVENT_READ else None
        except OSError:
            self.is_reusable = False
            return BROKEN

    def close(self) -> None:
        """Close."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(self.socket)
        self.socket.close()

    def _write(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self.socket.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._unsent else 0)
        if events != self._events:
            self._events = events
            self._selector.modify(self.socket, events, self)

    def _read(self) -> int | None:
        try:
            chunk = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None
        if not chunk:
            self.is_reusable = False
            is_whole = self._head_bytes and self._body_bytes is None and not self._is_chunked
            return self._status() if is_whole else BROKEN
        self._received += chunk
        if not self._head_bytes:
            self._read_head()
        return self._status() if self._is_complete() else None

    def _read_head(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[: end + 2])
        self._head_bytes = end + 4
        length = _LENGTH.search(head)
        self._body_bytes = int(length[1]) if length else None
        self._is_chunked = bool(_CHUNKED.search(head))
        # An answer that came before the request was sent ends the connection: what follows would be
        # read as the rest of the old request.
        self.is_reusable = not _CLOSE.search(head) and not self._unsent

    def _is_complete(self) -> bool:
        if not self._head_bytes:
            return False
        if self._is_chunked:
            return self._received.endswith(b"0\r\n\r\n")
        if self._body_bytes is None:
            return False
        return len(self._received) >= self._head_bytes + self._body_bytes

    def _status(self) -> int:
        return int(self._received[9:12])


def close_all(selector: selectors.BaseSelector) -> None:
    """Close every connection that a selector waits for."""
    for key in list(selector.get_map().values()):
        key.data.close()
