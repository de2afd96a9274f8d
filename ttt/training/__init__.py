"""Training of the bundled models, and of models that are meant to be adapted."""
