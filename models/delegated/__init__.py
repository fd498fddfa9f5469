"""A public model whose linear layers others compute: which layers these are, and how the model runs with their answers.

layers.py      the layers of one model in groups: those of a group read one input
calls.py       answers the calls of linear layers while a model runs
sequences.py   which groups a pass calls, with how many rows: known before its first message
integers.py    a group's weights as integers
manifest.py    what parties agree on, and the folder of their weights
"""
