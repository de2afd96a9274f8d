"""What all routes share: middleware, errors, dependencies and connections."""
