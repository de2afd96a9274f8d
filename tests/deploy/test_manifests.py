"""Manifests for Kubernetes, compose and Ray name what is there, and pass the schemas of the API."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from refine_server.server.app import create_app
from refine_server.server.settings import Settings, check_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
VERSION = "1.33"
OPERATORS = ("monitoring.coreos.com", "keda.sh", "kustomize.config.k8s.io")
"""API groups that Kubernetes itself does not have."""
MANIFESTS = sorted(path for path in KUBERNETES.glob("*.yaml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.fixture
def pod() -> Any:
    return read(KUBERNETES / "deployment.yaml")["spec"]["template"]["spec"]


@pytest.fixture
def container(pod: Any) -> Any:
    (container,) = pod["containers"]
    return container


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_passes_the_schema(path: Path) -> None:
    resource = read(path)
    if resource["apiVersion"].partition("/")[0] in OPERATORS:
        assert resource["kind"]
        return
    kubernetes_validate.validate(resource, VERSION, strict=True)


def test_the_kustomization_has_every_manifest() -> None:
    listed = read(KUBERNETES / "kustomization.yaml")["resources"]
    assert sorted(listed) == [path.name for path in MANIFESTS if path.stem != "kustomization"]


def test_everything_selects_the_pods_of_the_deployment() -> None:
    labels = read(KUBERNETES / "deployment.yaml")["spec"]["template"]["metadata"]["labels"]
    assert read(KUBERNETES / "service.yaml")["spec"]["selector"] == labels
    for name in ("poddisruptionbudget", "servicemonitor"):
        assert read(KUBERNETES / f"{name}.yaml")["spec"]["selector"]["matchLabels"] == labels
    policy = read(KUBERNETES / "networkpolicy.yaml")["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert (
        read(KUBERNETES / "scaledobject.yaml")["spec"]["scaleTargetRef"]["name"]
        == (read(KUBERNETES / "deployment.yaml")["metadata"]["name"])
    )


def test_probes_ask_routes_that_need_no_key(container: Any) -> None:
    paths = set(create_app(Settings(model="tiny", store="none")).openapi()["paths"])
    for probe in ("readinessProbe", "livenessProbe", "startupProbe"):
        asked = container[probe]["httpGet"]["path"]
        assert asked.startswith("/health/")
        assert {asked, "/metrics"} <= paths


def test_a_pod_has_time_to_end(pod: Any, container: Any) -> None:
    """The server takes up to twice its time for requests, and the proxies' time comes before."""
    values = {entry["name"]: entry["value"] for entry in container["env"]}
    seconds = float(values["REFINE_SHUTDOWN_SECONDS"])
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > pause + 2 * seconds


def test_a_pod_may_do_no_more_than_it_needs(pod: Any, container: Any) -> None:
    assert pod["securityContext"]["runAsNonRoot"]
    rights = container["securityContext"]
    assert rights["readOnlyRootFilesystem"]
    assert rights["capabilities"] == {"drop": ["ALL"]}
    assert not rights["allowPrivilegeEscalation"]
    written = {
        mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")
    }
    assert written == {"/tmp", "/var/cache/refine-server"}


def settings_in(environment: dict[str, str]) -> Settings:
    options = {
        name.removeprefix("REFINE_").lower(): value
        for name, value in environment.items()
        if name.startswith("REFINE_")
    }
    return check_settings(options)


def test_variables_of_the_manifests_are_options(container: Any) -> None:
    settings = settings_in({entry["name"]: entry["value"] for entry in container["env"]})
    assert settings.store.startswith("s3://")
    server = read(DEPLOY / "compose.yaml")["services"]["server"]
    assert settings_in(server["environment"]).store.startswith("s3://")


def test_scaling_follows_a_metric_that_there_is() -> None:
    (trigger,) = read(KUBERNETES / "scaledobject.yaml")["spec"]["triggers"]
    assert "refine_waiting_seconds" in trigger["metadata"]["query"]


def test_compose_mounts_files_that_there_are() -> None:
    services = read(DEPLOY / "compose.yaml")["services"]
    volumes = [entry for service in services.values() for entry in service.get("volumes", ())]
    mounted = [entry.partition(":")[0] for entry in volumes if entry.startswith(".")]
    assert len(mounted) == 3
    assert [source for source in mounted if not (DEPLOY / source).is_dir()] == []
    for service in services.values():
        tag = service["image"].rpartition(":")[2]
        assert tag not in ("", "latest")


def test_options_in_the_configuration_of_ray_are_options() -> None:
    (application,) = read(DEPLOY / "ray.yaml")["applications"]
    assert check_settings(application["args"]).store != "none"
    names = [deployment["name"] for deployment in application["deployments"]]
    assert names == ["Ingress", "Replica"]
