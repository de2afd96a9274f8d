"""The engine: the queue, the scheduler and the thread that owns the model."""
