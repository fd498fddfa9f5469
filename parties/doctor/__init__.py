"""`blindformer doctor`: what is wrong with one party of a deployment, and what to do about it."""
