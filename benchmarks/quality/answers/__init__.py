"""Does a document's answer become better, and by what: contexts, evidence, adaptation."""
