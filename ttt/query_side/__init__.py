"""Query-side adaptation: the document's state stays the base model's, and only queries adapt."""
