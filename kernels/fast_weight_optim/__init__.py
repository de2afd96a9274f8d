"""One optimiser step for many requests at once, each with its own rate, clip and step count."""
