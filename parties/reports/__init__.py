"""What a query costs and what a folder holds, in figures and pictures."""
