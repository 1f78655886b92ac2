"""How many requests are being answered at once, and for how long one may take.

A request beyond the bound is refused at once, so that those that were admitted are answered in time
whatever the load is.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import Field

from features.config import Config
from serving.batching import DEADLINE

TIMEOUT_HEADER = b"x-timeout-ms"
_WINDOW_SECONDS = 0.5
_TOO_MUCH = 0.2  # share of refusals that no burst explains
_FEW = 10  # refusals that say nothing yet
_UNCOUNTED = ("/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/page/", "/v1/admin/")


class AdmissionConfig(Config):
    """What is refused because there is too much of it."""

    max_requests: int = Field(
        128, ge=1, le=100_000, description="requests being answered at once; more are refused with 503"
    )
    overload_requests: int = Field(
        32,
        ge=1,
        le=100_000,
        description="as max_requests, while more than a fifth of what comes is refused, so that what is let "
        "in waits less; doubled after each half second in which fewer are refused",
    )
    timeout_ms: int = Field(
        10_000,
        ge=1,
        le=600_000,
        description="longest a request may wait until work on it begins, or a bundle is opened for it; a "
        "caller asks for less by the header `X-Timeout-Ms`",
    )


def is_uncounted(path: str) -> bool:
    """Return whether a path is answered however much else is asked, such as what watches the server."""
    return path == "/" or path.startswith(_UNCOUNTED)


class TimeoutHeaderError(ValueError):
    """The header `X-Timeout-Ms` is not a number of milliseconds that is allowed."""


class Admission:
    """Counts what is being answered. Used by the event loop alone.

    Args:
        config: The bounds.

    Attributes:
        draining: Whether the server is about to stop, and so not ready for more.
        aside: How many requests wait for their body or for a bundle, and so have no place.
    """

    def __init__(self, config: AdmissionConfig) -> None:
        self.config = config
        self.draining = False
        self.aside = 0
        self._in_flight = 0
        self._limit = config.max_requests
        self._window_from = time.monotonic()
        self._let_in = self._refused = 0  # since then

    @property
    def limit(self) -> int:
        """How many requests are let in at present."""
        self._look_back(time.monotonic())
        return self._limit

    def refuse(self) -> None:
        """Take note that a request was refused."""
        self._refused += 1
        if self._refused >= _FEW and self._is_too_much:
            self._limit = min(self.config.overload_requests, self.config.max_requests)

    @property
    def _is_too_much(self) -> bool:
        return self._refused > _TOO_MUCH * (self._refused + self._let_in)

    def _look_back(self, now: float) -> None:
        """Let more in again after a window in which few were refused: bursts of a load that can be borne."""
        windows = (now - self._window_from) / _WINDOW_SECONDS
        if windows < 1:
            return
        if windows >= 2:
            self._limit = self.config.max_requests
        elif not self._is_too_much:
            self._limit = min(2 * self._limit, self.config.max_requests)
        self._window_from, self._let_in, self._refused = now, 0, 0

    @property
    def in_flight(self) -> int:
        """How many requests are being answered."""
        return self._in_flight

    def enter(self) -> bool:
        """Take a place; False where none is left. Who got one must `leave`."""
        if self._in_flight >= self.limit:
            self.refuse()
            return False
        self._in_flight += 1
        self._let_in += 1
        return True

    def leave(self) -> None:
        """Give the place back."""
        self._in_flight -= 1

    @contextmanager
    def stepped_aside(self) -> Iterator[None]:
        """Give the present request's place back while it only waits; it has one again after, full or not."""
        self._in_flight -= 1
        self.aside += 1
        try:
            yield
        finally:
            self._in_flight += 1
            self.aside -= 1

    def set_deadline(self, asked: bytes | None) -> None:
        """Set the present request's deadline.

        Args:
            asked: The value of `X-Timeout-Ms`.

        Raises:
            TimeoutHeaderError: If that is no whole number from 1 to the configured one.
        """
        most = self.config.timeout_ms
        if asked is None:
            milliseconds = most
        elif not asked.isdigit() or len(asked) > 9 or not 1 <= int(asked) <= most:
            raise TimeoutHeaderError(f"X-Timeout-Ms must be a whole number from 1 to {most}")
        else:
            milliseconds = int(asked)
        DEADLINE.set(time.monotonic() + milliseconds / 1e3)
