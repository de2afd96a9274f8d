"""What the model is asked to do, from a request to its events."""
