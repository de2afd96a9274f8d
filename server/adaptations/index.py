"""The adaptations that a server knows, by id and by what was asked for."""

from collections.abc import Callable, ValuesView

from refine_server.server.adaptations.adaptation import Adaptation


class Index:
    """Adaptations by id and by key.

    Args:
        forget_document: is called with an owner and the key of a document that no adaptation of the
            owner uses any more.
    """

    def __init__(self, forget_document: Callable[[str, str], None]) -> None:
        self._forget_document = forget_document
        self._by_id: dict[str, Adaptation] = {}
        self._by_key: dict[str, Adaptation] = {}

    def __contains__(self, adaptation: Adaptation) -> bool:
        return self._by_id.get(adaptation.id) is adaptation

    @property
    def all(self) -> ValuesView[Adaptation]:
        """All adaptations."""
        return self._by_id.values()

    def get(self, adaptation_id: str) -> Adaptation | None:
        """Return an adaptation by its id."""
        return self._by_id.get(adaptation_id)

    def find(self, key: str) -> Adaptation | None:
        """Return the adaptation that a request with this key joins."""
        return self._by_key.get(key)

    def add(self, adaptation: Adaptation) -> None:
        """Add an adaptation, in place of one with the same id or key."""
        self._by_id[adaptation.id] = adaptation
        if adaptation.key is not None:
            self._by_key[adaptation.key] = adaptation

    def rename(self, adaptation: Adaptation, adaptation_id: str) -> None:
        """Give an adaptation that nobody knows yet another id."""
        if adaptation in self and adaptation.id != adaptation_id:
            del self._by_id[adaptation.id]
            self._by_id[adaptation_id] = adaptation
        adaptation.id = adaptation_id

    def forget(self, adaptation: Adaptation) -> None:
        """Remove an adaptation."""
        if adaptation in self:
            del self._by_id[adaptation.id]
        self.forget_key(adaptation)
        owner, key = adaptation.owner, adaptation.document_key
        used = {a.document_key for a in self.all if a.owner == owner}
        if key is not None and key not in used:
            self._forget_document(owner, key)

    def forget_key(self, adaptation: Adaptation) -> None:
        """Let no other request join an adaptation."""
        if adaptation.key is not None and self._by_key.get(adaptation.key) is adaptation:
            del self._by_key[adaptation.key]
        adaptation.key = None
