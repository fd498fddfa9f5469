"""Rules of scales: how the fractional bits of a result follow from its arguments'. Discovered by scanning this folder.

An operation names its rule (protocols/operations/). To add one, decorate a function of the scaler and the node with
`@scale_rule("name")`: it asks for its arguments' instructions, and emits its own (models/program/scales.py).
"""
