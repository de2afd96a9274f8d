"""What callers exchange with this package: configuration, requests, events, reports and errors."""
