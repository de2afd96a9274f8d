"""Replays questions against a server under several objectives; a run can be interrupted."""
