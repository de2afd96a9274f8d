"""Middleware, one class a file; ``server.app`` lists it in order, the outermost first."""
