"""Evidence: the parts of a document that answer a query, found by words or by the model."""
