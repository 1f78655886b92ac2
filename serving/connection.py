"""One connection: uvicorn's protocol with bounds on what a client sends, leaves unsent, and leaves unread.

uvicorn waits without end for a head that has begun, for the rest of a body that nobody reads any more, and
for a reply to be taken; and it drops the body of a request that offers another protocol (`Upgrade: h2c`, as
Java's client does with every first request; Kludex/uvicorn#2722). None of that is so here.
"""

import asyncio
from typing import Any, Literal

import httptools  # also makes uvicorn pick it; without its C parser it is several times slower
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.admission import Admission, is_uncounted
from serving.gate import CapsConfig
from serving.metrics import Metrics

MOST_HEAD_BYTES = 262_144
"""A head that has not ended by then ends its connection; what is shorter is refused by `CapsConfig`."""

_LAST_SECONDS = 0.5  # for a request on its way when the server ends
_HEAD_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
)
_HEAD_TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_OVERLOADED_BODY = (
    b'{"error":{"code":"overloaded","message":"as many requests as can be are being answered; try again"}}'
)
_OVERLOADED_HEAD = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
    b"content-length: %d\r\n" % len(_OVERLOADED_BODY)
)


class CappedProtocol(HttpToolsProtocol):
    """What a client may do to a connection, and how many requests may be under way.

    A request too many is refused here, for a small part of the price of an answer: at a multiple of what can
    be answered, nothing but refusing would be done otherwise.

    Args:
        admission: How many requests may be under way.
        metrics: Where refusals are counted.
        caps: How much a client may send, and how long it may take.
        arguments: uvicorn's.
    """

    def __init__(self, admission: Admission, metrics: Metrics, caps: CapsConfig, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._admission = admission
        self._metrics = metrics
        self._caps = caps
        self._arriving: Literal["nothing", "head", "body"] = "nothing"
        self._head_bytes = 0
        self._dropped_bytes = 0
        self._shedding = self._ends_after_shedding = self._ignores_upgrade = False
        self._slow: asyncio.TimerHandle | None = None  # ends the wait for what is to arrive
        self._unread: asyncio.TimerHandle | None = None  # ends the wait for what is to be read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a first request."""
        super().connection_made(transport)
        self._keep_alive()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing any more."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._stop_slow()
        self._stop_unread()

    def data_received(self, data: bytes) -> None:
        """Parse what arrived."""
        self._unset_keepalive_if_required()
        self._head_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserUpgrade, httptools.HttpParserError) as stop:
            self._parse_on(data, stop)
        if self._arriving != "nothing":
            self._bound_arrival()
        elif self.cycle is None or self.cycle.response_complete:
            self._keep_alive()

    def on_message_begin(self) -> None:
        """Begin to count."""
        self._arriving, self._head_bytes = "head", 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; trailers, which follow a chunked body without end, are not kept."""
        if self._arriving == "head":
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Refuse the request where there are too many, else begin to answer it."""
        self._arriving, self._dropped_bytes = "body", 0
        if self._slow is not None:
            self._stop_slow()
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._ignores_upgrade = True
        elif self._is_one_too_many():
            self._shed()
        else:
            super().on_headers_complete()
            if self._admission.draining:
                self.end_after_reply()

    def on_body(self, body: bytes) -> None:
        """Pass the body on, but not that of a request that has its reply, which is only awaited a while."""
        if not self._shedding and not self.cycle.response_complete:
            super().on_body(body)
            return
        self._dropped_bytes += len(body)
        if self._dropped_bytes > self._caps.max_body_bytes:
            self._close()

    def on_message_complete(self) -> None:
        """End the request."""
        if self._ignores_upgrade:
            return
        self._arriving = "nothing"
        if self._slow is not None:
            self._stop_slow()
        if not self._shedding:
            super().on_message_complete()
            return
        self._shedding = False
        if self._ends_after_shedding:
            self._close()

    def on_response_complete(self) -> None:
        """Go on to what comes next."""
        super().on_response_complete()
        if self.transport.is_closing():
            self._bound_reading()

    def pause_writing(self) -> None:
        """Give the client a while to read."""
        super().pause_writing()
        self._bound_reading()

    def resume_writing(self) -> None:
        """Go on where the client reads; what is left on a connection that closes keeps its bound."""
        super().resume_writing()
        if not self.transport.is_closing():
            self._stop_unread()

    def timeout_keep_alive_handler(self) -> None:
        """End a connection on which nothing was asked for long; one whose last reply was not read at once."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """End the connection; one that is new, or on which a head has begun, may bring its request first."""
        if self.cycle is None or self._arriving == "head":
            self.loop.call_later(_LAST_SECONDS, super().shutdown)
        else:
            super().shutdown()

    def end_after_reply(self) -> None:
        """Make the reply that is due the last one of the connection, and say so in it."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False

    def _parse_on(self, data: bytes, stop: Exception) -> None:
        """Parse what the parser takes for another protocol; end the connection where it is no HTTP."""
        rest = data
        error: Exception | None = stop
        while isinstance(error, httptools.HttpParserUpgrade) and self._ignores_upgrade:
            rest, error = self._without_upgrade(rest[error.args[0] :]), None
            try:
                self.parser.feed_data(rest)
            except (httptools.HttpParserUpgrade, httptools.HttpParserError) as next_stop:
                error = next_stop
        if isinstance(error, httptools.HttpParserError):
            self.send_400_response("Invalid HTTP request received.")
            self._bound_reading()

    def _without_upgrade(self, rest: bytes) -> bytes:
        """Return the request from its beginning without its offer, for a parser that has not seen it."""
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b\r\n" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self._ignores_upgrade = False
        return b"".join([*lines, b"\r\n", rest])

    def _is_one_too_many(self) -> bool:
        if len(self.tasks) - self._admission.aside < self._admission.limit:
            return False
        replies_are_due = self.cycle is not None and not self.cycle.response_complete
        return not replies_are_due and not is_uncounted(self.url.partition(b"?")[0].decode("latin-1"))

    def _shed(self) -> None:
        self._shedding = True
        self._admission.refuse()
        self._metrics.refused("overloaded")
        declared = dict(self.headers).get(b"content-length", b"")
        too_large = declared.isdigit() and int(declared[:20]) > self._caps.max_body_bytes
        self._ends_after_shedding = (
            too_large or self._admission.draining or not self.parser.should_keep_alive()
        )
        close = b"connection: close\r\n" if self._ends_after_shedding else b""
        body = b"" if self.parser.get_method() == b"HEAD" else _OVERLOADED_BODY
        self.transport.write(b"%b%b\r\n%b" % (_OVERLOADED_HEAD, close, body))

    def _bound_arrival(self) -> None:
        """Bound the wait for the rest of a request, but not where `serving.gate` does that for the body."""
        if self.transport.is_closing():
            return
        if self._arriving == "head" and self._head_bytes > MOST_HEAD_BYTES:
            self.transport.write(_HEAD_TOO_LARGE)
            self._close()
        elif self._slow is not None:
            return
        elif self._arriving == "head":
            self._slow = self.loop.call_later(self._caps.head_seconds, self._give_head_up)
        elif self._shedding or self.cycle.response_complete:
            self._slow = self.loop.call_later(self._caps.body_seconds, self._close)

    def _give_head_up(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.end_after_reply()
            return
        self._metrics.refused("head_too_slow")
        self.transport.write(_HEAD_TOO_SLOW)
        self._close()

    def _keep_alive(self) -> None:
        """Bound the wait for a next request."""
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _close(self) -> None:
        self.transport.close()
        self._bound_reading()

    def _bound_reading(self) -> None:
        """Bound the wait until the client has read what was written."""
        if self._unread is None and self.transport.get_write_buffer_size():
            self._unread = self.loop.call_later(self._caps.reply_seconds, self.transport.abort)

    def _stop_slow(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None
