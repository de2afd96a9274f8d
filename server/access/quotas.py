"""How much each key has used, and what it may not use any more for now."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from refine_server.server.access.keys import ANYONE, Keyring, Principal
from refine_server.server.http.errors import ApiError

MINUTE = 60.0
HOUR = 3600.0


def exceeded(quota: str, limit: int, retry_after: float) -> ApiError:
    """429: the key has used what it may; ``code`` names the quota."""
    seconds = max(math.ceil(retry_after), 1)
    message = f"This key's quota {quota} ({limit}) is used up. Try again in {seconds} s."
    return ApiError(429, message, f"quota_{quota}", retry_after=seconds)


class Allowance:
    """So many units for a period, regained steadily (a token bucket).

    Args:
        limit: units that a period gives, and the most that can be saved up.
        period: seconds.
        now: the time, in seconds of any steady clock.
    """

    def __init__(self, limit: int, period: float, now: float) -> None:
        self.limit = limit
        self.rate = limit / period
        self._left = float(limit)
        self._at = now

    def wait(self, units: int, now: float) -> float:
        """Seconds until so many units are there; 0 when they are. Never when over the limit."""
        if units > self.limit:
            return math.inf
        return max(units - self._regained(now), 0.0) / self.rate

    def spend(self, units: int, now: float) -> None:
        """Take units that are there."""
        self._left = self._regained(now) - units
        self._at = now

    def _regained(self, now: float) -> float:
        return min(self._left + (now - self._at) * self.rate, float(self.limit))


class _Used:
    """What one key has used."""

    def __init__(self, principal: Principal, now: float) -> None:
        limits = principal.limits
        self.running = 0
        self.requests = _allowance(limits.requests_per_minute, MINUTE, now)
        self.tokens = _allowance(limits.document_tokens_per_hour, HOUR, now)


def _allowance(limit: int | None, period: float, now: float) -> Allowance | None:
    return None if limit is None else Allowance(limit, period, now)


class QuotaKeeper:
    """Counts what keys use. Safe from any thread; usage is forgotten when the process ends.

    Args:
        keyring: whose quotas.
        clock: steady seconds.
    """

    def __init__(self, keyring: Keyring, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        principals = [*keyring.principals.values(), ANYONE]
        self._used = {p.name: _Used(p, clock()) for p in principals}

    @contextmanager
    def request(self, principal: Principal) -> Iterator[None]:
        """One HTTP request, from its head to the last byte of its response.

        Raises:
            ApiError: 429, too many in a minute or at the same time.
        """
        used, limits = self._used[principal.name], principal.limits
        with self._lock:
            now = self._clock()
            most = limits.concurrent_requests
            if most is not None and used.running >= most:
                raise exceeded("concurrent_requests", most, 1.0)
            if used.requests is not None:
                if wait := used.requests.wait(1, now):
                    raise exceeded("requests_per_minute", used.requests.limit, wait)
                used.requests.spend(1, now)
            used.running += 1
        try:
            yield
        finally:
            with self._lock:
                used.running -= 1

    @contextmanager
    def document(self, owner: str, tokens: int) -> Iterator[None]:
        """A document that is about to be let in; nothing is taken when it is not.

        Raises:
            ApiError: 429 when the owner has read too many tokens lately, 413 when no wait helps.
        """
        used = self._used[owner]
        if used.tokens is None:
            yield
            return
        with self._lock:
            now = self._clock()
            wait = used.tokens.wait(tokens, now)
            if math.isinf(wait):
                message = f"This key's documents may have {used.tokens.limit} tokens in an hour."
                raise ApiError(413, message, "quota_document_tokens_per_hour")
            if wait:
                raise exceeded("document_tokens_per_hour", used.tokens.limit, wait)
            used.tokens.spend(tokens, now)
        try:
            yield
        except BaseException:
            with self._lock:
                used.tokens.spend(-tokens, self._clock())
            raise
