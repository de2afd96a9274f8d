"""What can be wrong with a store, or with one of its entries."""


class StoreError(Exception):
    """The store failed; the message says why."""


class MissingEntryError(StoreError):
    """There is no such entry."""


class UnreadableEntryError(StoreError):
    """An entry is whole, but another version of refine-server wrote it; it is left as it is."""


class DamagedEntryError(StoreError):
    """An entry is incomplete or has changed since it was written; it was put into quarantine."""
