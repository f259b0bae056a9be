"""HTTP/1.1 and gRPC as a load generator needs them: requests made once, answers parsed as little as correctness allows.

Pure: bytes in, bytes out. Not for real clients: what a server may do and none of ours and our peers' does is an error
here, not a feature.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from benchmarks.inference_load import WrongAnswerError

# HTTP/2 (RFC 9113): frame types and flags.
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW_BYTES = 65_535
"""What a server takes of a connection, and of a stream, before it has said anything."""
FRAME_BYTES_MAX = 16_384


class HttpExchange:
    """HTTP/1.1 with keep-alive.

    Args:
        path: Of the endpoint.
        body: Of each request.
        headers: Beside the necessary ones.
        read_answer: Takes the floats out of a body.
    """

    def __init__(
        self,
        path: str,
        body: bytes,
        headers: dict[str, str] | None = None,
        read_answer: Callable[[bytes], bytes] = bytes,
    ) -> None:
        fields = {"Host": "127.0.0.1", "Content-Type": "application/octet-stream", "Content-Length": str(len(body))}
        lines = [f"POST {path} HTTP/1.1", *(f"{key}: {value}" for key, value in (fields | (headers or {})).items())]
        self._request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        self._read_answer = read_answer
        self._came = b""
        self._body = b""

    def begin(self) -> bytes:
        """The first request."""
        return self._request

    def again(self) -> bytes:
        """The next one."""
        return self._request

    @property
    def answer(self) -> bytes:
        """The floats of the last answer; empty before the first."""
        return self._read_answer(self._body) if self._body else b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Takes what came."""
        self._came += data
        head, separator, rest = self._came.partition(b"\r\n\r\n")
        if not separator:
            return b"", False
        if head[9:12] != b"200":
            raise WrongAnswerError(f"expected status 200, but got: {(head + rest)[:400].decode(errors='replace')}")
        lower = head.lower()
        length_at = lower.find(b"\r\ncontent-length:")
        if length_at >= 0:
            length = int(lower[length_at + 17 :].split(b"\r\n", 1)[0])
            if len(rest) < length:
                return b"", False
            self._body = rest
        elif rest.endswith(b"0\r\n\r\n"):
            self._body = _join_chunks(rest)
        else:
            return b"", False
        self._came = b""
        return b"", True


def _join_chunks(rest: bytes) -> bytes:
    parts: list[bytes] = []
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if length == 0:
            return b"".join(parts)
        parts.append(rest[:length])
        rest = rest[length + 2 :]


class GrpcExchange:
    """Unary gRPC calls over one HTTP/2 connection, one after the other.

    Args:
        method: For example "/fieldpost.v1.Inference/Predict".
        message: The serialized request, small enough for one window of flow control.
        read_answer: Takes the floats out of a serialized response.
    """

    def __init__(self, method: str, message: bytes, read_answer: Callable[[bytes], bytes] = bytes) -> None:
        self._headers = (
            b"\x83\x86"  # :method POST, :scheme http: from the static table
            + b"".join(
                prefix + _text(value)
                for prefix, value in (
                    (b"\x04", method),  # :path
                    (b"\x01", "127.0.0.1"),  # :authority
                    (b"\x00" + _text("te"), "trailers"),
                    (b"\x00" + _text("content-type"), "application/grpc"),
                )
            )
        )
        self._body = b"\x00" + struct.pack(">I", len(message)) + message
        if len(self._body) > WINDOW_BYTES:
            raise ValueError(f"expected a message of less than {WINDOW_BYTES} bytes, but got {len(message)}")
        self._read_answer = read_answer
        self._stream = 1
        self._window = WINDOW_BYTES
        self._is_waiting_for_window = False
        self._came = b""
        self._parts: list[bytes] = []
        self._answer = b""

    def begin(self) -> bytes:
        """The connection's beginning, and the first request."""
        # No dynamic table, so that no state is needed to read headers; all the room in the world for answers.
        settings = _frame(SETTINGS, 0, 0, struct.pack(">HIHI", 1, 0, 4, 2**31 - 1))
        return PREFACE + settings + _frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 2**30)) + self._request()

    def again(self) -> bytes:
        """The next request, or nothing where the server does not take so much now."""
        self._stream += 2
        if self._window < len(self._body):
            self._is_waiting_for_window = True
            return b""
        return self._request()

    @property
    def answer(self) -> bytes:
        """The floats of the last answer; empty before the first."""
        return self._read_answer(self._answer) if self._answer else b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """Takes what came."""
        self._came += data
        reply = b""
        is_complete = False
        while len(self._came) >= 9:
            length = int.from_bytes(self._came[:3])
            kind, flags, stream = self._came[3], self._came[4], int.from_bytes(self._came[5:9])
            if len(self._came) < 9 + length:
                break
            content = self._came[9 : 9 + length]
            self._came = self._came[9 + length :]
            if kind in (SETTINGS, PING):
                reply += b"" if flags & ACK else _frame(kind, ACK, 0, content if kind == PING else b"")
            elif kind == WINDOW_UPDATE and stream == 0:
                self._window += int.from_bytes(content)
                if self._is_waiting_for_window and self._window >= len(self._body):
                    self._is_waiting_for_window = False
                    reply += self._request()
            elif kind == DATA:
                self._parts.append(content)
            elif kind in (RST_STREAM, GOAWAY):
                raise WrongAnswerError(f"expected an answer, but got an HTTP/2 frame of type {kind}: {content!r}")
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                self._answer = b"".join(self._parts)[5:]
                if not self._parts:
                    raise WrongAnswerError(f"expected an answer, but got a status: {content[:400]!r}")
                self._parts = []
                is_complete = True
        return reply, is_complete

    def _request(self) -> bytes:
        self._window -= len(self._body)
        parts = [self._body[at : at + FRAME_BYTES_MAX] for at in range(0, len(self._body), FRAME_BYTES_MAX)]
        frames = [_frame(HEADERS, END_HEADERS, self._stream, self._headers)]
        frames += [_frame(DATA, 0, self._stream, part) for part in parts[:-1]]
        return b"".join([*frames, _frame(DATA, END_STREAM, self._stream, parts[-1])])


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + content


def _text(value: str) -> bytes:
    """A short string literal of HPACK, not compressed."""
    return bytes([len(value)]) + value.encode()
