"""Whether a server stays up, loses nothing and leaks nothing."""
