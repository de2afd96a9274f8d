"""The HTTP contract: the routes and the wire schema of each resource side by side."""
