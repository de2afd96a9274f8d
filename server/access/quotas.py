"""Counts what each key uses, and refuses requests over its quotas."""

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
    """429: a quota of the key is used up; ``code`` names the quota."""
    seconds = max(math.ceil(retry_after), 1)
    message = f"The quota {quota} ({limit}) of this API key is used up. Try again in {seconds} s."
    return ApiError(429, message, f"quota_{quota}", retry_after=seconds)


class TokenBucket:
    """A number of units for each period, refilled steadily.

    Args:
        limit: units that are refilled in a period, and the most that the bucket holds.
        period: length of a period in seconds.
        now: current time in seconds of a monotonic clock.
    """

    def __init__(self, limit: int, period: float, now: float) -> None:
        self.limit = limit
        self.rate = limit / period
        self._units = float(limit)
        self._updated = now

    def wait(self, units: int, now: float) -> float:
        """Return the seconds until the bucket holds so many units; infinity if it never can."""
        if units > self.limit:
            return math.inf
        return max(units - self._refilled(now), 0.0) / self.rate

    def take(self, units: int, now: float) -> None:
        """Take units that the bucket holds; a negative number gives units back."""
        self._units = self._refilled(now) - units
        self._updated = now

    def _refilled(self, now: float) -> float:
        return min(self._units + (now - self._updated) * self.rate, float(self.limit))


class _Usage:
    """What one key uses."""

    def __init__(self, principal: Principal, now: float) -> None:
        self.quotas = quotas = principal.quotas
        self.running = 0
        self.requests = _bucket(quotas.requests_per_minute, MINUTE, now)
        self.document_tokens = _bucket(quotas.document_tokens_per_hour, HOUR, now)


def _bucket(limit: int | None, period: float, now: float) -> TokenBucket | None:
    return None if limit is None else TokenBucket(limit, period, now)


def _take_request(usage: _Usage, now: float) -> None:
    if usage.requests is None:
        return
    if wait := usage.requests.wait(1, now):
        raise exceeded("requests_per_minute", usage.requests.limit, wait)
    usage.requests.take(1, now)


class QuotaKeeper:
    """Holds requests and documents against the quotas of their keys; safe to use in any thread.

    Usage is kept in memory and starts anew with the process.

    Args:
        keyring: the keys and their quotas.
        clock: returns the seconds of a monotonic clock.
    """

    def __init__(self, keyring: Keyring, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._keyring = keyring
        self._usage: dict[str, _Usage] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take over the keyring's quotas; a key whose quotas are unchanged keeps its usage.

        Usage of a key that is gone is kept, because its requests may not have ended.
        """
        with self._lock:
            for principal in (*self._keyring.principals.values(), ANYONE):
                usage = self._usage.get(principal.name)
                if usage is None or usage.quotas != principal.quotas:
                    renewed = _Usage(principal, self._clock())
                    renewed.running = 0 if usage is None else usage.running
                    self._usage[principal.name] = renewed

    @contextmanager
    def request(self, principal: Principal) -> Iterator[None]:
        """Count an HTTP request, from its head to the last byte of its response.

        Raises:
            ApiError: 429, too many requests in a minute or at the same time.
        """
        limit = principal.quotas.concurrent_requests
        with self._lock:
            now, usage = self._clock(), self._usage[principal.name]
            if limit is not None and usage.running >= limit:
                raise exceeded("concurrent_requests", limit, 1.0)
            _take_request(usage, now)
            usage.running += 1
        try:
            yield
        finally:
            with self._lock:  # its quotas may have changed, and its usage with them
                self._usage[principal.name].running -= 1

    def take_request(self, owner: str) -> None:
        """Count a request that is no HTTP request: one of a batch, whose number is bounded anyway.

        Raises:
            ApiError: 429, too many requests in a minute.
        """
        with self._lock:
            _take_request(self._usage[owner], self._clock())

    @contextmanager
    def document(self, owner: str, tokens: int) -> Iterator[None]:
        """Count a document while it is admitted to the queue; give its tokens back if it is not.

        Raises:
            ApiError: 429 if the owner's documents had too many tokens lately, 413 if this one alone
                has more than the quota of an hour.
        """
        bucket = self._usage[owner].document_tokens
        if bucket is None:
            yield
            return
        with self._lock:
            now = self._clock()
            wait = bucket.wait(tokens, now)
            if math.isinf(wait):
                message = (
                    f"The document has {tokens} tokens; the quota document_tokens_per_hour of this "
                    f"API key is {bucket.limit}."
                )
                raise ApiError(413, message, "quota_document_tokens_per_hour")
            if wait:
                raise exceeded("document_tokens_per_hour", bucket.limit, wait)
            bucket.take(tokens, now)
        try:
            yield
        except BaseException:
            with self._lock:
                bucket.take(-tokens, self._clock())
            raise
