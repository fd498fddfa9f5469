"""The Flower app that pyproject.toml names is this one, with the settings' own defaults."""

import tomllib
from pathlib import Path

from blindformer.federated.deploy import APP as deployed
from blindformer.federated.settings import FederateSettings
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app, validate

ROOT = Path(__file__).resolve().parents[2]
APP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]


def test_the_configuration_is_the_settings_and_both_halves_read_it():
    assert APP["config"] == {**FederateSettings().to_config(), "out": ""}
    assert FederateSettings.of({**APP["config"], "out": "/models/digits", "clients": 3}) == FederateSettings(clients=3)


def test_flower_finds_both_halves_and_a_deployment_has_the_same():
    for part, kind in (("serverapp", ServerApp), ("clientapp", ClientApp)):
        reference = APP["components"][part]
        assert validate(reference, project_dir=ROOT) == (True, None)
        assert isinstance(load_app(reference, Exception), kind)
    assert tomllib.loads(deployed)["tool"]["flwr"]["app"]["components"] == APP["components"]
