"""How long tests wait: for machines that are slow, busy, or both. Only a test that fails waits so long."""

PATIENCE = 300.0  # seconds
