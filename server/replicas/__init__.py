"""Several replicas of the application behind Ray Serve."""
