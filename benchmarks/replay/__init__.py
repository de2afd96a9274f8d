"""Questions replayed against a server under several objectives, interruptible at any point."""
