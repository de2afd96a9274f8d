"""What the steps of an adaptation read: rows of tokens, chosen from a document."""
