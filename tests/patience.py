"""How long tests wait: for machines that are slow, busy, or both. Only a test that fails waits so long."""

PATIENCE = 240.0  # seconds; less than the timeout of pyproject.toml, which would say less
