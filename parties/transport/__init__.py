"""Frames between two parties: streams, TLS, the hello, a probe, and a slow network imitated."""
