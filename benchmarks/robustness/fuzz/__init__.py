"""Inputs that nobody should send, against a server: none may cause a server error."""
