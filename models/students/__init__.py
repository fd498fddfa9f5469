"""Students of packaged models that come with this package, a folder each (see models/loading/students.py)."""
