"""How much structure a JSON text has, counted while it arrives and before it is parsed."""

MAX_VALUES = 2**18
"""Values in one body: as many token ids as 128 prompts of 2048 tokens have."""
MAX_STRUCTURE = 2**15
"""Objects, arrays and fields in one body: 1024 messages of 9 parts each have fewer."""


class JsonStructure:
    """Counts the values, objects, arrays and fields of a JSON text, given piece by piece.

    Parsing takes up to a microsecond for each of them, during which no other request is served, and
    a body of 4 MiB has room for millions. Counting takes a nanosecond for each byte. Strings are
    left out, so that a text may contain any characters.
    """

    def __init__(self) -> None:
        self._in_string = False
        self._held = b""
        """A backslash at the end of the last piece, whose escaped character is still to come."""
        self.values = 0
        """Commas so far: values but the first of each object and array."""
        self.structure = 0
        """Objects, arrays and fields so far."""

    def add(self, piece: bytes) -> None:
        """Count a further piece of the text."""
        text = self._without_escapes(self._held + piece)
        parts = text.split(b'"')
        outside = b"".join(parts[self._in_string :: 2])
        self._in_string ^= len(parts) % 2 == 0
        self.values += outside.count(b",")
        self.structure += sum(map(outside.count, (b"{", b"[", b":")))

    @property
    def is_excessive(self) -> bool:
        """Whether there is more than one request can need."""
        return self.values > MAX_VALUES or self.structure > MAX_STRUCTURE

    def _without_escapes(self, text: bytes) -> bytes:
        """Remove escaped backslashes and quotes, so that every quote left begins or ends a string.

        Backslashes are paired from the left, as a parser does.
        """
        if b"\\" not in text:
            self._held = b""
            return text
        ends_in_escape = (len(text) - len(text.rstrip(b"\\"))) % 2 == 1
        self._held = b"\\" if ends_in_escape else b""
        return text.removesuffix(self._held).replace(b"\\\\", b"").replace(b'\\"', b"")
