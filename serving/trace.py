"""W3C trace context: a caller's `traceparent` goes on in the reply and in every log line of its request."""

import logging
import random
import re
from contextvars import ContextVar
from dataclasses import dataclass

_VERSION = "00"
_HEADER = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True)
class Trace:
    """One request's place in a trace: all ids lower-case hexadecimal.

    Attributes:
        trace_id: 32 digits, the caller's where it gave a valid header.
        span_id: 16 digits, of this request.
        flags: 2 digits; the last bit says that the caller records the trace.
    """

    trace_id: str
    span_id: str
    flags: str

    @property
    def header(self) -> str:
        """The reply's `traceparent`."""
        return f"{_VERSION}-{self.trace_id}-{self.span_id}-{self.flags}"


PRESENT: ContextVar[Trace | None] = ContextVar("PRESENT", default=None)
"""The trace of the request that is being answered; None outside of one."""


def trace_of(header: bytes | None) -> Trace:
    """Return a request's trace: the caller's, or a new one where the header is absent or not valid.

    Source: W3C Trace Context, level 1, 3.2. A later version is read as far as it agrees with version 00.
    """
    span_id = _random_id(8)
    found = _HEADER.fullmatch(header) if header is not None else None
    if found is not None:
        version, trace_id, parent, flags, rest = found.groups()
        known = version != b"ff" and (rest is None or version != b"00")
        if known and trace_id.strip(b"0") and parent.strip(b"0"):
            return Trace(trace_id.decode(), span_id, flags.decode())
    return Trace(_random_id(16), span_id, "00")


class TraceFormatter(logging.Formatter):
    """Writes a log line as it is, with the trace id of the request it belongs to at its end."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line or, with a traceback, the lines."""
        trace = PRESENT.get()
        if trace is None:
            return super().format(record)
        first, newline, rest = super().format(record).partition("\n")
        return f"{first} [trace {trace.trace_id}]{newline}{rest}"


def _random_id(size: int) -> str:
    """Return so many random bytes, not all zero; ids are no secrets, and `os.urandom` gives up the GIL."""
    return f"{random.getrandbits(8 * size) or 1:0{2 * size}x}"
