"""Federated training with Flower: compact models are trained where the examples are, and then run privately.

client.py and server.py are the two halves of the Flower app that pyproject.toml names; federate.py runs it.
Importing it raises FederateError where Flower is not installed.
"""

from importlib.util import find_spec

from .settings import FederateError

if find_spec("flwr") is None:
    raise FederateError(
        "federated training needs Flower, which is not installed; run: pip install 'blindformer[federated]'"
    )
