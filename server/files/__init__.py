"""Files of clients: documents, and the inputs and outputs of batches."""
