"""What work takes of the memory, measured on the model itself or on its shapes alone."""
