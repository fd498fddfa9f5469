"""Federated training with Flower: compact models are trained where the examples are, and then run privately.

client.py and server.py are the two halves of the Flower app that pyproject.toml names; federate.py runs it, and
command.py is its command. Importing the room costs nothing; what uses Flower fails without it.
"""
