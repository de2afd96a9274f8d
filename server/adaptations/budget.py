"""Which adapted documents stay in memory."""

from collections.abc import Collection

from refine_server.server.adaptations.adaptation import Adaptation


class MemoryBudget:
    """A bound on the bytes of documents in memory; the least recently used are evicted first.

    Args:
        max_bytes: the most that all documents together may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes

    @staticmethod
    def used(adaptations: Collection[Adaptation]) -> int:
        """Return the bytes of all documents that are in memory."""
        return sum(a.nbytes for a in adaptations if a.document is not None)

    def fits(self, adaptations: Collection[Adaptation], nbytes: int) -> bool:
        """Return whether a document of ``nbytes`` fits beside those in memory."""
        return self.used(adaptations) + nbytes <= self.max_bytes

    def evict(self, adaptations: Collection[Adaptation], nbytes: int = 0) -> list[Adaptation]:
        """Drop unused documents until ``nbytes`` more fit; return the adaptations that lost theirs.

        Fewer are dropped than needed when the others are in use.
        """
        # A document that is being stored is not in the store yet: dropped now, it would be lost.
        idle = [a for a in adaptations if a.document and not a.users and a.status.is_final]
        evicted = []
        for adaptation in sorted(idle, key=lambda a: a.last_used):
            if self.fits(adaptations, nbytes):
                break
            adaptation.document = None
            evicted.append(adaptation)
        return evicted
