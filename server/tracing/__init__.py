"""OpenTelemetry traces: off, and nothing of it imported, unless its variables ask for them."""
