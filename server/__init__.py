"""The HTTP server: routes, the queue, the worker that owns the model, and the command line."""
