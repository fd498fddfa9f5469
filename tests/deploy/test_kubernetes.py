"""The manifests: their schemas take them, all that they name exists, pods are confined, and commands are ours."""

from __future__ import annotations

import copy
import re
from functools import cache, reduce
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from blindformer.tests.deploy.files import DEPLOY, SETTINGS, USER, commands, documents, images, settings

KUBERNETES = DEPLOY / "kubernetes"
CERT_MANAGER = "cert-manager.io/v1"
# What a Certificate may say (cert-manager has no schema in a package).
SPEC = {
    *("commonName", "dnsNames", "duration", "isCA", "issuerRef", "privateKey", "renewBefore", "secretName"),
    *("uris", "usages"),
}
USAGES = {"server": {"server auth", "client auth"}, "dealer": {"server auth"}, "client": {"client auth"}}


def resources(folder: Path) -> list[dict[str, Any]]:
    """What kustomize would apply of a folder, without its labels and namespace."""
    (kustomization,) = documents(folder / "kustomization.yaml")
    applied = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": given["name"]}, "files": given["files"]}
        for given in kustomization.get("configMapGenerator", ())
    ]
    for name in kustomization.get("resources", ()):
        path = folder / name
        applied += resources(path.resolve()) if path.is_dir() else documents(path)
    return applied


@cache
def everything() -> list[dict[str, Any]]:
    return resources(KUBERNETES / "trial")


def of_kind(kind: str) -> dict[str, dict[str, Any]]:
    return {resource["metadata"]["name"]: resource for resource in everything() if resource["kind"] == kind}


PODS = {
    name: resource["spec"]["template"] for kind in ("Deployment", "Job") for name, resource in of_kind(kind).items()
}
each_pod = pytest.mark.parametrize("name", PODS)


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"]]


def secrets(volume: dict[str, Any]) -> list[dict[str, Any]]:
    named = [volume["secret"]] if "secret" in volume else []
    return named + [source["secret"] for source in volume.get("projected", {}).get("sources", ())]


def test_the_schemas_of_kubernetes_take_them():
    ours = [
        resource
        for resource in everything()
        if resource["apiVersion"] != CERT_MANAGER and resource["kind"] != "ConfigMap"
    ]
    assert len(ours) > 10
    for resource in ours:
        kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_every_manifest_belongs_to_a_kustomization():
    for folder in (path.parent for path in KUBERNETES.rglob("kustomization.yaml")):
        (kustomization,) = documents(folder / "kustomization.yaml")
        files = {path.name for path in folder.glob("*.yaml")} - {"kustomization.yaml"}
        assert files == {name for name in kustomization["resources"] if "/" not in name}, folder.name


@each_pod
def test_what_a_pod_names_exists(name):
    spec = PODS[name]["spec"]
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounted = {mount["name"] for container in containers(PODS[name]) for mount in container["volumeMounts"]}
    assert mounted == set(volumes)
    issued = {certificate["spec"]["secretName"] for certificate in of_kind("Certificate").values()}
    for volume in volumes.values():
        if "configMap" in volume:
            assert volume["configMap"]["name"] in of_kind("ConfigMap")
        if "persistentVolumeClaim" in volume:
            assert volume["persistentVolumeClaim"]["claimName"] in of_kind("PersistentVolumeClaim")
        for secret in secrets(volume):
            assert secret.get("optional") or secret.get("name", secret.get("secretName")) in issued
    for container in containers(PODS[name]):
        ports = {port["name"] for port in container.get("ports", ())}
        probes = [
            container[probe] for probe in ("startupProbe", "livenessProbe", "readinessProbe") if probe in container
        ]
        assert {probe["httpGet"]["port"] for probe in probes} <= ports
        assert {probe["httpGet"]["path"] for probe in probes} <= {"/healthz", "/readyz"}


@each_pod
def test_images_and_commands_are_ours(name, parse):
    own = []
    for container in containers(PODS[name]):
        assert container["image"] in images()
        command, arguments = container.get("command", []), container.get("args", [])
        if arguments:
            own += commands(command, arguments)
    assert own
    for command in own:
        parse(command)
        assert "compile" in command or f"--config {SETTINGS}" in command


@each_pod
def test_pods_are_confined(name):
    spec = PODS[name]["spec"]
    context = spec["securityContext"]
    assert (context["runAsNonRoot"], context["runAsUser"], context["fsGroup"]) == (True, USER, USER)
    assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not spec["automountServiceAccountToken"]
    for container in containers(PODS[name]):
        own = container["securityContext"]
        assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True)
        assert own["capabilities"] == {"drop": ["ALL"]}
        assert set(container["resources"]["requests"]) == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


def test_the_user_is_that_of_the_image():
    assert f"USER {USER}:{USER}" in (DEPLOY / "Dockerfile").read_text()


@each_pod
def test_a_policy_says_what_a_pod_may_reach(name):
    labels = PODS[name]["metadata"]["labels"]
    (policy,) = [
        policy["spec"]
        for policy in of_kind("NetworkPolicy").values()
        if policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    ]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert opened == {
        port["containerPort"] for container in containers(PODS[name]) for port in container.get("ports", ())
    }
    dials = {"server": {7444}, "ask": {7443, 7444}}.get(name, set())
    assert {port["port"] for rule in policy["egress"] for port in rule["ports"]} - {53} == dials


@pytest.mark.parametrize("role", ["server", "dealer"])
def test_settings_ports_services_and_certificates_agree(role):
    own, address, pod = getattr(settings(), role), settings().address(role), PODS[role]
    (container,) = pod["spec"]["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        "private": own.listen.port,
        "metrics": own.metrics.port,
    }
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(own.metrics.port)
    service = of_kind("Service")[address.host]["spec"]
    assert service["selector"].items() <= pod["metadata"]["labels"].items()
    assert [(port["port"], port["targetPort"]) for port in service["ports"]] == [(address.port, "private")]
    assert address.host in of_kind("Certificate")[role]["spec"]["dnsNames"]
    paths = {mount["mountPath"] for mount in container["volumeMounts"]}
    for path in (own, settings().certificates):
        for key in ("folder", "store", "state"):
            folder = getattr(path, key, None)
            assert folder is None or any(folder.is_relative_to(there) for there in paths), folder


@pytest.mark.parametrize("role", USAGES)
def test_certificates_are_of_one_role_and_lie_where_the_party_looks(role):
    spec = of_kind("Certificate")[role]["spec"]
    assert spec["uris"] == [f"blindformer:role:{role}"]
    assert set(spec["usages"]) == {"digital signature", *USAGES[role]}
    pod = PODS["ask" if role == "client" else role]["spec"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "certs"]
    assert volume.get("projected", volume.get("secret"))["defaultMode"] == 0o440
    first = secrets(volume)[0]
    assert first.get("name", first.get("secretName")) == spec["secretName"]
    given = {item["key"]: item["path"] for item in first["items"]}
    assert given == {"ca.crt": "ca.pem", "tls.crt": f"{role}.pem", "tls.key": f"{role}.key"}
    # Kubernetes opens keys to the volume's group, which is said to be as good as systemd's credentials.
    (container,) = pod["containers"]
    folder = str(settings().certificates.folder)
    assert {"name": "CREDENTIALS_DIRECTORY", "value": folder} in container["env"]
    assert folder in {mount["mountPath"] for mount in container["volumeMounts"]}


def test_certificates_are_issued_by_issuers_that_exist():
    for name, certificate in of_kind("Certificate").items():
        assert certificate["apiVersion"] == CERT_MANAGER
        assert set(certificate["spec"]) <= SPEC, name
        assert certificate["spec"]["issuerRef"]["name"] in of_kind("Issuer")
    signing = of_kind("Issuer")["blindformer"]["spec"]["ca"]["secretName"]
    assert of_kind("Certificate")["ca"]["spec"]["secretName"] == signing


@pytest.mark.parametrize("page", ["deploy.md", "operations.md"])
def test_overlays_of_the_pages_fit_the_manifests(page):
    """Applied here as JSON patches are. That of docs/operations.md makes several servers."""
    (text,) = re.findall(r"```yaml\n(.*?)```", (DEPLOY.parent / "docs" / page).read_text(), re.DOTALL)
    changed = copy.deepcopy(resources(KUBERNETES / "server"))
    for patch in yaml.safe_load(text)["patches"]:
        kind, name = patch["target"]["kind"], patch["target"].get("name")
        targets = [one for one in changed if one["kind"] == kind and name in (None, one["metadata"]["name"])]
        assert targets
        for target in targets:
            for step in yaml.safe_load(patch["patch"]):
                *way, last = step["path"].split("/")[1:]
                place = reduce(lambda at, key: at[int(key) if isinstance(at, list) else key], way, target)
                if last == "-":
                    place.append(step["value"])
                else:
                    assert step["op"] == "add" or last in place, step
                    place[last] = step["value"]
    for resource in changed:
        if resource["apiVersion"] != CERT_MANAGER:
            kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)
    (deployment,) = (one["spec"] for one in changed if one["kind"] == "Deployment")
    assert page == "deploy.md" or (deployment["replicas"], deployment["strategy"]) == (4, {"type": "RollingUpdate"})
