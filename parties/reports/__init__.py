"""The cost of queries, services and conversations, and the content of folders: figures, tables and pictures."""
