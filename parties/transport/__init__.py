"""Frames between two parties: streams, TLS, the hello, a probe, and an imitated slow network."""
