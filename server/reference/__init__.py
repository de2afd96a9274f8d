"""Pages of the documentation that are made from the code: all settings and all metrics."""
