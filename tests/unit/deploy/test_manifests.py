"""The manifests against the code: what the API server would take, and what the daemon needs to find."""

import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

from devices.pool_config import parse_config
from multus.cni.conf import parse_conf
from multus.hardware import UPSTREAM_CONFIG
from multus.kube import requests
from multus.kube.objects import NETWORK_STATUS, NETWORKS
from multus.networks.selection import parse_selections
from multus.settings import parse_daemon

DEPLOY = Path(__file__).parents[3] / "deploy"
OVERLAYS = ("plain", "sriov", "dpdk")
MANIFESTS = sorted(DEPLOY.rglob("*.yaml"))


def objects(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each is not None]


def kustomized(folder: Path) -> Iterator[Path]:
    """Every file that a kustomization brings, those of its bases included."""
    (kustomization,) = objects(folder / "kustomization.yaml")
    for resource in kustomization.get("resources", ()):
        path = (folder / resource).resolve()
        if path.is_dir():
            yield from kustomized(path)
        else:
            yield path
    for patch in kustomization.get("patches", ()):
        yield (folder / patch["path"]).resolve()
    for generator in kustomization.get("configMapGenerator", ()):
        for file in generator["files"]:
            yield (folder / file.rpartition("=")[2]).resolve()


def base(kind: str) -> dict[str, Any]:
    found = [each for path in (DEPLOY / "base").glob("*.yaml") for each in objects(path) if each.get("kind") == kind]
    assert len(found) == 1
    return found[0]


def pod_spec() -> dict[str, Any]:
    spec: dict[str, Any] = base("DaemonSet")["spec"]["template"]["spec"]
    return spec


def container(name: str = "multus") -> dict[str, Any]:
    spec = pod_spec()
    (found,) = [each for each in (*spec["containers"], *spec["initContainers"]) if each["name"] == name]
    return dict(found)


def granted(*folders: str) -> set[tuple[str, str, str]]:
    """(group, resource, verb) of all roles."""
    paths = [path for folder in folders for path in (DEPLOY / folder).glob("*.yaml")]
    roles = [each for path in paths for each in objects(path) if each.get("kind") in ("ClusterRole", "Role")]
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def asked() -> list[requests.Request]:
    """Every request that the daemon makes."""
    status = requests.patch_status("default", "web", uid="u", status="[]")
    event = requests.post_event(
        "default", "web", uid="u", node="n", kind="Normal", reason="r", message="m", now="t", suffix="1"
    )
    lists = []
    for each in (requests.pods_on("n"), requests.all_nads()):
        lists += [requests.list_page(each, limit=1), requests.watch(each, version="1", seconds=1)]
    return [*lists, requests.get_pod("default", "web"), requests.get_nad("default", "net"), status, event]


def asked_of_claims() -> list[requests.Request]:
    return [requests.get_claim("default", "claim"), requests.list_page(requests.slices_of("driver", "n"), limit=1)]


def rights(made: list[requests.Request]) -> set[tuple[str, str, str]]:
    return {(each.group, each.resource, each.verb) for each in made}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_manifest_is_yaml_with_kinds(path: Path) -> None:
    found = objects(path)
    assert found
    for each in found:
        assert each["apiVersion"]
        assert each["kind"]


@pytest.mark.parametrize("folder", [*OVERLAYS, "base", "uninstall"])
def test_every_file_that_is_named_exists(folder: str) -> None:
    for path in kustomized(DEPLOY / folder):
        assert path.is_file(), path


def test_every_file_belongs_to_something() -> None:
    used = {path for folder in (*OVERLAYS, "uninstall") for path in kustomized(DEPLOY / folder)}
    loose = {
        path
        for path in DEPLOY.rglob("*")
        if path.suffix in (".yaml", ".json") and path.relative_to(DEPLOY).parts[0] not in ("examples", "grafana")
    }
    assert {path for path in loose if path.name != "kustomization.yaml"} == used


def test_the_role_grants_what_is_asked_and_nothing_else() -> None:
    assert granted("base") == rights(asked())


def test_claims_are_granted_only_where_devices_are() -> None:
    assert granted("sriov") == rights(asked_of_claims())
    assert granted("plain", "dpdk") == set()


def test_no_request_is_forgotten_here() -> None:
    """A new function in multus.kube.requests that makes requests has to be granted, too."""
    makers = {
        name
        for name, function in inspect.getmembers(requests, inspect.isfunction)
        if not name.startswith("_")
        and function.__annotations__.get("return") in (requests.Request, requests.Collection)
    }
    assert makers == {
        *("pods_on", "all_nads", "list_page", "watch", "get_pod", "get_nad", "patch_status", "post_event"),
        *("get_claim", "slices_of"),
    }


def test_the_binding_is_of_the_daemons_account() -> None:
    account, binding = base("ServiceAccount"), base("ClusterRoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "multus", "namespace": "kube-system"}]
    assert account["metadata"]["name"] == pod_spec()["serviceAccountName"] == "multus"
    assert binding["roleRef"]["name"] == base("ClusterRole")["metadata"]["name"]


def test_the_policies_are_of_that_account_and_in_force() -> None:
    found = objects(DEPLOY / "base/policy.yaml")
    policies = [each for each in found if each["kind"] == "ValidatingAdmissionPolicy"]
    bindings = [each for each in found if each["kind"] == "ValidatingAdmissionPolicyBinding"]
    assert [each["spec"]["policyName"] for each in bindings] == [each["metadata"]["name"] for each in policies]
    assert all(each["spec"]["validationActions"] == ["Deny"] for each in bindings)
    written = set()
    for policy in policies:
        assert policy["spec"]["failurePolicy"] == "Fail"
        (condition,) = policy["spec"]["matchConditions"]
        assert "system:serviceaccount:kube-system:multus'" in condition["expression"]
        for rule in policy["spec"]["matchConstraints"]["resourceRules"]:
            written |= {(group, resource) for group in rule["apiGroups"] for resource in rule["resources"]}
    assert written == {(group, resource) for group, resource, verb in rights(asked()) if verb in ("patch", "create")}


def test_the_policy_names_the_annotation_that_we_write() -> None:
    assert f"'{NETWORK_STATUS}'" in (DEPLOY / "base/policy.yaml").read_text()


def test_the_settings_are_understood_and_found_in_the_pod() -> None:
    settings = parse_daemon((DEPLOY / "base/daemon-config.json").read_bytes(), where="daemon-config.json", cores=2)
    assert settings.warnings == ()
    mounts = {each["mountPath"]: each for each in container()["volumeMounts"]}
    needed = [
        *(settings.cni_config_dir, settings.multus_autoconfig_dir, settings.conf_dir, settings.cni_dir),
        *(settings.socket_dir, settings.chroot_dir, settings.device_info_dir.replace("/var/run/", "/run/")),
        *(f"{settings.kubelet_dir}/pod-resources", f"{settings.kubelet_dir}/device-plugins", "/run/netns"),
    ]
    for path in needed:
        wanted = PurePosixPath(path)
        assert any(wanted.is_relative_to(mount) for mount in mounts), path
    for written in (settings.cni_config_dir, settings.cni_dir, settings.socket_dir):
        (mount,) = [each for path, each in mounts.items() if PurePosixPath(written).is_relative_to(path)]
        assert not mount.get("readOnly")


def test_namespaces_of_pods_that_start_later_are_seen() -> None:
    mounts = {each["mountPath"]: each for each in container()["volumeMounts"]}
    for path in ("/run/netns", "/hostroot"):
        assert mounts[path]["mountPropagation"] == "HostToContainer"


def test_every_mount_has_its_volume_at_the_same_place_of_the_host() -> None:
    spec = pod_spec()
    volumes = {each["name"]: each for each in spec["volumes"]}
    for each in (*spec["containers"], *spec["initContainers"]):
        for mount in each["volumeMounts"]:
            host = volumes[mount["name"]].get("hostPath")
            if host and mount["name"] != "hostroot":
                assert host["path"] == mount["mountPath"]
    used = {mount["name"] for each in (*spec["containers"], *spec["initContainers"]) for mount in each["volumeMounts"]}
    assert used == set(volumes)


def test_the_daemon_is_probed_limited_and_not_evicted() -> None:
    spec, daemon = pod_spec(), container()
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["hostNetwork"] is True
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert {"startupProbe", "readinessProbe", "livenessProbe"} <= set(daemon)
    for each in (*spec["containers"], *spec["initContainers"]):
        assert "memory" in each["resources"]["limits"]
        assert "cpu" not in each["resources"]["limits"], "a burst would be throttled"
    settings = parse_daemon(b"{}", where="", cores=2)
    assert spec["terminationGracePeriodSeconds"] > settings.add_timeout


def test_nobody_is_privileged_where_no_devices_are_handled() -> None:
    for each in (container(), container("install")):
        security = each["securityContext"]
        assert "privileged" not in security
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"]["drop"] == ["ALL"]
    (patch,) = objects(DEPLOY / "sriov/daemonset.yaml")
    assert patch["spec"]["template"]["spec"]["containers"][0]["securityContext"]["privileged"] is True


@pytest.mark.parametrize("folder", ["sriov", "dpdk"])
def test_patches_fit_the_daemonset(folder: str) -> None:
    (patch,) = objects(DEPLOY / folder / "daemonset.yaml")
    assert patch["metadata"]["name"] == base("DaemonSet")["metadata"]["name"]
    spec = patch["spec"]["template"]["spec"]
    assert [each["name"] for each in spec["containers"]] == ["multus"]
    known = {each["name"] for each in (*pod_spec()["volumes"], *spec["volumes"])}
    assert {each["name"] for each in spec["containers"][0]["volumeMounts"]} <= known


def test_the_image_has_every_mount_point() -> None:
    """Its root file system is read-only: a mount point that is missing cannot be made."""
    text = (DEPLOY / "Containerfile").read_text()
    made = set(re.findall(r"(?<= )/[\w./-]+", text.partition("RUN mkdir")[2].partition("ENTRYPOINT")[0]))
    system = {"/tmp", "/dev", "/lib/modules"}
    mounts = {mount["mountPath"] for each in (container(), container("install")) for mount in each["volumeMounts"]}
    for folder in ("sriov", "dpdk"):
        (patch,) = objects(DEPLOY / folder / "daemonset.yaml")
        mounts |= {each["mountPath"] for each in patch["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounts - system <= made


def test_one_image_is_used_everywhere() -> None:
    images = [objects(DEPLOY / each / "kustomization.yaml")[0]["images"] for each in ("base", "uninstall")]
    assert images[0] == images[1]
    assert images[0][0]["newTag"] != "latest"


def test_the_crd_is_the_one_that_pods_refer_to() -> None:
    crd = base("CustomResourceDefinition")["spec"]
    (version,) = crd["versions"]
    assert requests.all_nads().group == crd["group"]
    assert requests.all_nads().resource == crd["names"]["plural"]
    assert requests.all_nads().path == f"/apis/{crd['group']}/{version['name']}/{crd['names']['plural']}"
    assert version["additionalPrinterColumns"]


@pytest.mark.parametrize(
    ("config", "good"),
    [
        ("", True),
        ("{}", True),
        (' \n\t{"type": "macvlan"}\r\n', True),
        ('{"a": "}{"}', True),
        ("[]", False),
        ("type: macvlan", False),
        ('{"type": ', False),
        ("{{ .Values }} and more", False),
    ],
)
def test_the_crds_rule_takes_what_may_be_a_configuration(config: str, good: bool) -> None:
    (version,) = base("CustomResourceDefinition")["spec"]["versions"]
    schema = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["config"]
    (rule,) = schema["x-kubernetes-validations"]
    pattern = json.loads(f'"{rule["rule"].removeprefix("self.matches(").removesuffix(")").strip(chr(39))}"')
    assert bool(re.search(pattern.replace("$", r"\Z"), config)) is good


@pytest.mark.parametrize("path", sorted((DEPLOY / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_examples_are_what_the_daemon_understands(path: Path) -> None:
    for each in objects(path):
        if each["kind"] == "NetworkAttachmentDefinition":
            if config := each.get("spec", {}).get("config"):
                assert parse_conf(config.encode(), where=str(path)).plugins
        else:
            assert each["kind"] == "Pod"
            parse_selections(each["metadata"].get("annotations", {}).get(NETWORKS, ""), "default")


@pytest.mark.parametrize("folder", ["sriov", "dpdk"])
def test_pools_are_understood_and_lie_where_the_daemon_looks(folder: str) -> None:
    assert parse_config((DEPLOY / folder / "config.json").read_bytes(), where=folder).pools
    (patch,) = objects(DEPLOY / "sriov/daemonset.yaml")
    mounts = {each["name"]: each for each in patch["spec"]["template"]["spec"]["containers"][0]["volumeMounts"]}
    assert mounts["devices"]["mountPath"] == str(UPSTREAM_CONFIG.parent)
    assert UPSTREAM_CONFIG.name == "config.json"
