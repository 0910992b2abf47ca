"""Checks the manifests beside this file, or those named; `validate` runs it where the schemas are.

What the schemas of Kubernetes and the Operator say, that each selector finds pods and each named port is one of theirs, and
what promtool says of configurations and rules inside. Whether the adapter knows its flags is asked by tests/it.
"""

import pathlib
import subprocess
import sys
import tempfile

import kubernetes_validate
import pydantic
import yaml
from cloudcoil.models.prometheus_operator import v1 as operator

# The oldest that README.md names, and the newest there is a schema of.
KUBERNETES = ["1.30", "1.37"]
OPERATOR = "monitoring.coreos.com/v1"

# What is applied together with another file, and refers to it.
BESIDE = {"prometheus-operator-by-labels.yaml": "by-labels.yaml"}


class Loader(yaml.SafeLoader):
    """A key that is given twice is a mistake, not a correction."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read(path):
    return list(yaml.load_all(path.read_text(), Loader))


def schema_mistakes(resource):
    if resource["apiVersion"] == OPERATOR:
        yield from operator_mistakes(resource)
        return
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(resource, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version}: {'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield error.message


def operator_mistakes(resource):
    try:
        model = getattr(operator, resource["kind"]).model_validate(resource)
    except (AttributeError, pydantic.ValidationError) as error:
        yield f"Prometheus Operator: {error}"
        return
    # The models pass over what they do not know.
    known = model.model_dump(by_alias=True, exclude_unset=True, mode="json")
    yield from (f"Prometheus Operator: {path} is unknown" for path in unknown(resource, known, "resource"))


def unknown(given, known, path):
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            if key in known:
                yield from unknown(value, known[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list) and isinstance(known, list):
        for number, (value, other) in enumerate(zip(given, known)):
            yield from unknown(value, other, f"{path}[{number}]")


def pods(resources):
    """Labels and names of ports of the pods that these resources make."""
    for resource in resources:
        spec = resource.get("spec", {})
        if resource["kind"] in ("StatefulSet", "Deployment"):
            labels, pod, own_ports = spec["template"]["metadata"]["labels"], spec["template"]["spec"], set()
        elif resource["kind"] == "Prometheus":
            # What the Operator adds.
            labels, pod, own_ports = {"operator.prometheus.io/name": resource["metadata"]["name"]}, spec, {"web"}
        else:
            continue
        containers = pod.get("containers", []) + pod.get("initContainers", [])
        yield labels, own_ports | {port["name"] for container in containers for port in container.get("ports", [])}


def reference_mistakes(resource, resources):
    """Selectors that find nothing and ports that nobody has: the schemas cannot tell, and nothing would complain."""
    spec, kind = resource.get("spec", {}), resource["kind"]
    if kind not in ("Service", "PodDisruptionBudget", "StatefulSet", "Deployment", "PodMonitor", "ServiceMonitor"):
        return
    selector = spec["selector"].get("matchLabels", {}) if kind != "Service" else spec["selector"]
    if kind == "ServiceMonitor":
        services = [service for service in resources if service["kind"] == "Service"]
        candidates = [
            (service["metadata"]["labels"], {port["name"] for port in service["spec"]["ports"]}) for service in services
        ]
    else:
        candidates = list(pods(resources))
    found = [ports for labels, ports in candidates if selector.items() <= labels.items()]
    if not found:
        yield f"the selector {selector} finds nothing"
        return
    wanted = {port["targetPort"] for port in spec["ports"]} if kind == "Service" else set()
    wanted |= {endpoint["port"] for endpoint in spec.get("podMetricsEndpoints", []) + spec.get("endpoints", [])}
    for port in wanted - set.union(*found):
        yield f"no port is named {port}"


def promtool_mistakes(resource):
    if resource["kind"] == "PrometheusRule":
        checks = [("rules", yaml.safe_dump({"groups": resource["spec"]["groups"]}))]
    elif resource["kind"] == "ConfigMap":
        checks = [("config", text) for name, text in resource["data"].items() if name == "prometheus.yml"]
    else:
        return
    for what, text in checks:
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            file.write(text)
            file.flush()
            done = subprocess.run(["promtool", "check", what, file.name], capture_output=True, text=True)
        if done.returncode != 0:
            yield f"promtool check {what}: {done.stdout}{done.stderr}".rstrip()


def main():
    here = pathlib.Path(__file__).parent
    paths = [pathlib.Path(name) for name in sys.argv[1:]] or sorted(here.glob("*.yaml"))
    passed = failed = 0
    for path in paths:
        resources = read(path)
        others = read(here / BESIDE[path.name]) if path.name in BESIDE else []
        for resource in resources:
            mistakes = [
                *schema_mistakes(resource),
                *reference_mistakes(resource, resources + others),
                *promtool_mistakes(resource),
            ]
            for mistake in mistakes:
                print(f"{path.name}: {resource['kind']} {resource['metadata']['name']}: {mistake}")
            passed, failed = (passed, failed + 1) if mistakes else (passed + 1, failed)
    print(f"manifests: {passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
