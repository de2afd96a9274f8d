"""Programs: what the model is asked to do, as coroutines that await operations and emit events."""
