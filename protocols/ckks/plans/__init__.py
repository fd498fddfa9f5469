"""What each operation becomes, a form or a step on ciphertexts. Discovered by scanning this folder.

To add one, decorate a function of the planner, the instruction, its arguments and their scales with `@plan("name")`
(protocols/ckks/planner.py).
"""
