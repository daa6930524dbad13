"""Asks a server itself: whether it is ready, which version it is, and whether one can work with it."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import urllib3

from novacron.client import ApiError, Client, Config, NotFoundError, Unreachable
from novacron.rollout.model import StepFailed

READY_S_MAX = 5.0
VM_S_MAX, POLL_S = 180.0, 0.5
BUILD = re.compile(r'^novacron_build_info\{[^}]*version="([^"]*)"', re.MULTILINE)
VM_FIELDS = {"vcpus": 1, "memory_mib": 128}


def why_not_ready(url: str, ca: Path) -> str:
    """Return why a server is not ready; empty: it is."""
    try:
        with urllib3.PoolManager(ca_certs=str(ca)) as pool:
            answer = pool.request("GET", f"{url}/readyz", retries=False, timeout=READY_S_MAX)
    except (urllib3.exceptions.HTTPError, OSError) as error:
        return f"{url}: {error}"
    if answer.status == 200 and answer.data == b"ok\n":
        return ""
    return f"{url}/readyz answered {answer.status}: {answer.data[:200].decode(errors='replace').strip()}"


class SmokeTest:
    """Works with one server as users do. ``name``: of what it makes, and removes again."""

    def __init__(self, url: str, token: str, ca: Path, name: str) -> None:
        self._url, self._token, self._ca, self._name = url, token, ca, name

    def run(self, version: str, image: str) -> str:
        """Make, read and delete a project, and a VM if a node has the image; return what was done.

        Raises StepFailed.
        """
        try:
            client = Client(Config(self._url, self._token, self._ca.read_text()))
            self._check_version(client, version)
            self._clean(client)
            project = client.create_project(self._name)
            if client.get("projects", self._name)["id"] != project["id"]:
                raise StepFailed(f"{self._url}: project {self._name} is another one when it is read")
            vm_outcome = self._vm(client, image)
            client.delete("projects", self._name)
            with contextlib.suppress(NotFoundError):
                client.get("projects", self._name)
                raise StepFailed(f"{self._url}: project {self._name} is still there after it was deleted")
        except (ApiError, Unreachable, OSError) as error:
            raise StepFailed(f"smoke test at {self._url}: {error}") from None
        return f"version {version} answers; a project was made, read and deleted; {vm_outcome}"

    def _check_version(self, client: Client, version: str) -> None:
        build = BUILD.search(client.metrics())
        if build is None or build[1] != version:
            raise StepFailed(f"{self._url} is version {build[1] if build else 'unknown'} instead of {version}")

    def _clean(self, client: Client) -> None:
        """Remove what an earlier attempt has left."""
        with contextlib.suppress(NotFoundError):
            client.get("projects", self._name)
            inside = self._inside()
            for vm in inside.list("vms"):
                if vm["project"] == self._name:
                    self._delete(inside, vm["id"])
            with contextlib.suppress(NotFoundError):
                inside.delete("networks", self._name)
            client.delete("projects", self._name)

    def _inside(self) -> Client:
        """Return a client that works in the test's project. Raises OSError."""
        return Client(Config(self._url, self._token, self._ca.read_text(), self._name))

    def _vm(self, client: Client, image: str) -> str:
        nodes = [node for node in client.list("nodes") if node["status"]["ready"]]
        image_names = [listed["name"] for listed in client.list("images")]
        if not image or not nodes or image not in image_names:
            return "no VM was made: " + (f"no node is ready with image {image}" if image else "no image is named")
        inside = self._inside()
        inside.create_network(self._name)  # its own: it reaches nobody
        vm = inside.create_vm(name=self._name, image=image, nics=[{"network": self._name}], **VM_FIELDS)
        deadline = time.monotonic() + VM_S_MAX
        while (state := client.get("vms", vm["id"])["status"]["state"]) != "running":
            if state == "failed" or time.monotonic() > deadline:
                raise StepFailed(f"VM {self._name} is {state} instead of running")
            time.sleep(POLL_S)
        self._delete(inside, vm["id"])
        inside.delete("networks", self._name)
        return "a VM was made, ran and was deleted"

    def _delete(self, client: Client, vm: str) -> None:
        """Delete a VM and wait until it is gone. Raises StepFailed."""
        deadline = time.monotonic() + VM_S_MAX
        client.delete("vms", vm)
        while time.monotonic() < deadline:
            try:
                client.get("vms", vm)
            except NotFoundError:
                return
            time.sleep(POLL_S)
        raise StepFailed(f"VM {self._name} is still there {VM_S_MAX:.0f} s after it was deleted")
