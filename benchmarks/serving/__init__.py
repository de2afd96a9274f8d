"""The server under load: arrivals that do or do not wait for answers, and what clients see."""
