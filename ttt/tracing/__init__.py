"""What a run tells of itself where ``adapt.trace`` asks for it."""
