"""How often one client may ask: a moving window for each key and for each address."""

import ipaddress
import math
import time
from typing import Annotated

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from pydantic import AfterValidator, Field

from features.config import Config

_MOST_CLIENTS = 10_000
_REST = "the rest"
_STEP_SECONDS = 1.0


def _is_rate(text: str) -> str:
    parse(text)
    return text


Rate = Annotated[str, AfterValidator(_is_rate)]


class RatesConfig(Config):
    """How often one client may ask, such as `100/second` or `5000/hour`."""

    per_key: Rate | None = Field(None, description="requests of one API key; none is unlimited")
    per_address: Rate | None = Field(
        None,
        description="requests of one address without a valid key (one IPv6 /64 is one); none is unlimited",
    )


class Rates:
    """Counts requests in the memory of this process, for a bounded number of clients.

    Args:
        config: The rates.
    """

    def __init__(self, config: RatesConfig) -> None:
        self._per_key = parse(config.per_key) if config.per_key else None
        self._per_address = parse(config.per_address) if config.per_address else None
        self._storage = MemoryStorage()
        self._limiter = MovingWindowRateLimiter(self._storage)
        self._ahead = -math.inf

    def wait(self, key: str | None, address: str) -> int:
        """Count a request.

        Args:
            key: Name of the valid key that it showed.
            address: Where it came from.

        Returns:
            0 where it is within the rate, else whole seconds to wait before the next one.
        """
        rate = self._per_address if key is None else self._per_key
        if rate is None:
            return 0
        self._forget_the_future()
        client = self._known(rate, f"key {key}" if key is not None else _network(address))
        if self._limiter.hit(rate, client):
            return 0
        reset = self._limiter.get_window_stats(rate, client).reset_time
        return max(1, math.ceil(reset - time.time()))

    def _forget_the_future(self) -> None:
        """Begin anew where the storage's clock was set back: nobody waits for that time to pass twice."""
        ahead = time.time() - time.monotonic()
        if ahead < self._ahead - _STEP_SECONDS:
            self._storage.reset()
            self._ahead = ahead
        self._ahead = max(self._ahead, ahead)

    def _known(self, rate: RateLimitItem, client: str) -> str:
        """Return the client, or where there are too many of them the name that the further ones share."""
        held = self._storage.events
        if len(held) >= _MOST_CLIENTS and rate.key_for(client) not in held:
            for name in [name for name, entries in held.items() if not entries]:
                del held[name]
            if len(held) >= _MOST_CLIENTS:
                return _REST
        return client


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(parsed.ipv4_mapped or ipaddress.IPv6Network((parsed, 64), strict=False))
