"""By which names a server without API keys lets itself be called.

Somebody's page can let a name of its own point to 127.0.0.1 once the browser has loaded it (DNS rebinding).
For the browser this server is then the page's own, whose replies it may read; but the browser sends that name
as `Host`.
"""

import ipaddress
import re
from collections.abc import Iterable
from functools import lru_cache

_HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::[0-9]*)?")
_REMEMBERED = 64


class Hosts:
    """The names and addresses of a server.

    Args:
        names: Which it has besides `localhost` and every loopback address.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = frozenset({"localhost", *(name.lower().rstrip(".") for name in names)})
        self.has = lru_cache(_REMEMBERED)(self._has)
        """Return whether a request's header `Host`, with or without a port, names this server."""

    def _has(self, header: bytes) -> bool:
        found = _HOST.fullmatch(header.decode("latin-1").lower())
        if found is None:
            return False
        name = found[1] or found[2].rstrip(".")
        try:
            return name in self._names or ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False
