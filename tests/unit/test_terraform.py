"""Terraform's files for AWS: they can be read, refer to nothing that is not there, and make what is promised.

Providers and an account are not to be had here: nothing was planned or applied."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import hcl2
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DIRECTORY = ROOT / "deploy/terraform"
FOLDERS = {"": DIRECTORY, "state": DIRECTORY / "state"}
REFERENCE = re.compile(r"(?<![\w./-])((?:data|ephemeral)\.)?(aws_\w+|tls_\w+|var|local)\.(\w+)")
Json = Any


def files(folder: str) -> list[Path]:
    return sorted(FOLDERS[folder].glob("*.tf"))


def plain(value: Json) -> Json:
    """Return what was parsed without quotes and without what the parser adds."""
    if isinstance(value, dict):
        return {str(plain(key)): plain(item) for key, item in value.items() if not str(key).startswith("__")}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.strip('"') if isinstance(value, str) else value


@functools.cache
def parsed(path: Path) -> Json:
    return plain(hcl2.loads(path.read_text()))


def blocks(folder: str, kind: str) -> dict[str, Json]:
    """Return blocks by their labels: ``aws_vpc.main``."""
    found: dict[str, Json] = {}
    for path in files(folder):
        for block in parsed(path).get(kind, ()):
            labels = []
            body = block
            for _ in range({"variable": 1, "output": 1, "locals": 0, "terraform": 0}.get(kind, 2)):
                ((label, body),) = body.items()
                labels.append(label)
            found[".".join(labels) or path.name] = body
    return found


def declared(folder: str) -> set[str]:
    names = set(blocks(folder, "resource"))
    names |= {f"data.{name}" for name in blocks(folder, "data")}
    names |= {f"ephemeral.{name}" for name in blocks(folder, "ephemeral")}
    names |= {f"var.{name}" for name in blocks(folder, "variable")}
    names |= {f"local.{name}" for body in blocks(folder, "locals").values() for name in body}
    return names


def code(text: str) -> str:
    """Return text without comments, and without strings except for what is inserted into them."""
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in text.splitlines()]
    return re.sub(r'"[^"\n]*"', lambda found: " ".join(re.findall(r"\$\{([^}]*)\}", found[0])), "\n".join(lines))


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_refers_to_what_is_not_there(folder: str) -> None:
    used = {
        "".join((found[1] or "", found[2], ".", found[3]))
        for path in files(folder)
        for found in REFERENCE.finditer(code(path.read_text()))
    }
    assert len(used) > 3
    assert used - declared(folder) == set()
    unused = {name for name in declared(folder) if name.startswith(("var.", "local."))} - used
    assert unused == set(), "nothing reads these"


def test_a_reference_that_leads_nowhere_is_found() -> None:
    text = 'a = "x ${aws_vpc.gone.id} aws_vpc.word" # aws_vpc.comment'
    assert [found[0] for found in REFERENCE.finditer(code(text))] == ["aws_vpc.gone"]


@pytest.mark.skipif(shutil.which("terraform") is None, reason="needs terraform, which Debian does not have")
def test_the_files_are_formatted() -> None:
    done = subprocess.run(
        ["terraform", "fmt", "-check", "-diff", "-recursive", str(DIRECTORY)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_state_is_encrypted_and_locked() -> None:
    (backend,) = blocks("", "terraform")["versions.tf"]["backend"]
    assert backend["s3"]["use_lockfile"] is True and backend["s3"]["encrypt"] is True
    made = blocks("state", "resource")
    assert {"aws_s3_bucket_versioning.state", "aws_s3_bucket_public_access_block.state"} <= made.keys()


def test_databases_are_in_several_zones_encrypted_and_kept() -> None:
    made = blocks("", "resource")
    database, cache = made["aws_db_instance.main"], made["aws_elasticache_replication_group.main"]
    assert database["multi_az"] and database["storage_encrypted"] and database["deletion_protection"]
    assert not database["publicly_accessible"] and not database["skip_final_snapshot"]
    assert "password" not in database, "it would be in the state"
    assert cache["multi_az_enabled"] and cache["automatic_failover_enabled"] and cache["num_cache_clusters"] >= 3
    assert cache["at_rest_encryption_enabled"] and cache["transit_encryption_mode"] == "required"
    assert not [name for name in made if name.startswith("aws_route_table_association.data")], "they have no way out"


def test_the_cluster_has_five_to_ten_nodes() -> None:
    made = blocks("", "resource")
    (scaling,) = made["aws_eks_node_group.main"]["scaling_config"]
    assert (scaling["min_size"], scaling["desired_size"], scaling["max_size"]) == (5, 5, 10)
    assert "aws_kms_key.data" in str(made["aws_eks_cluster.main"]["encryption_config"])


def test_no_port_is_open_to_the_internet() -> None:
    made = blocks("", "resource")
    inwards = [body for name, body in made.items() if name.startswith("aws_vpc_security_group_ingress_rule.")]
    assert inwards and all("cidr_ipv4" not in rule and "cidr_ipv6" not in rule for rule in inwards)
    outwards = {name.partition(".")[2]: body for name, body in made.items() if "egress_rule" in name}
    assert {name for name, rule in outwards.items() if rule["cidr_ipv4"] == "0.0.0.0/0"} == {"agents_https"}
    groups = {name for name in made if name.startswith("aws_security_group.")}
    assert all("ingress" not in made[name] and "egress" not in made[name] for name in groups)
    between = str(blocks("", "locals")["security_groups.tf"]["between_groups"])
    for port in (5432, 6379, 7445, 4789, 51820):
        assert str(port) in between


def test_instances_give_their_credentials_to_no_guest() -> None:
    made = blocks("", "resource")
    for name in ("aws_instance.agent", "aws_launch_template.node"):
        (options,) = made[name]["metadata_options"]
        assert (options["http_tokens"], options["http_put_response_hop_limit"]) == ("required", 1)


def test_the_manifests_name_the_same_addresses() -> None:
    cidr = blocks("", "variable")["cidr"]["default"]
    kustomization = (ROOT / "deploy/kubernetes/aws/kustomization.yaml").read_text()
    assert set(re.findall(r"\d+\.\d+\.\d+\.\d+/\d+", kustomization)) == {cidr}
    scaled = yaml.safe_load_all((ROOT / "deploy/kubernetes/base/availability.yaml").read_text())
    (most,) = [document["spec"]["maxReplicas"] for document in scaled if "maxReplicas" in document["spec"]]
    (parameters,) = [
        body["parameter"] for name, body in blocks("", "resource").items() if name == "aws_db_parameter_group.main"
    ]
    (connections,) = [int(entry["value"]) for entry in parameters if entry["name"] == "max_connections"]
    assert (most + 1) * 20 <= connections - 20, "each server has up to 20; some are left for operators"
