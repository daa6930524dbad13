"""What a guest is told at its first boot: a small CD in the format of cloud-init (its NoCloud data source)."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from novacron.model.cloud_init import Seed, StoredSeed

LABEL = "cidata"


def build(path: Path, content: bytes) -> None:
    """Write a CD, whole or not at all. Raises OSError."""
    scratch = path.with_suffix(".new")
    scratch.write_bytes(content)
    scratch.rename(path)


def seed_cd(seed: Seed, *, id: str, name: str, macs: Sequence[str], address: str | None) -> bytes:
    """Return the CD for a VM.

    ``id`` is the VM's: a guest that sees another one takes itself for a new machine.
    """
    return cd(files(seed, id=id, name=name, macs=macs, address=address))


def files(seed: Seed, *, id: str, name: str, macs: Sequence[str], address: str | None) -> dict[str, bytes]:
    """Return the files on the CD. What is generated is JSON, which every reader of YAML reads."""
    instance = f"{id}-{seed.generation}" if isinstance(seed, StoredSeed) and seed.generation else id
    meta = {"instance-id": instance, "local-hostname": seed.hostname or name}
    if seed.ssh_keys:
        meta["public-keys"] = list(seed.ssh_keys)  # type: ignore[assignment]  # the first values are texts
    others = {f"nic{n}": {"match": {"macaddress": mac}, "dhcp4": True} for n, mac in enumerate(macs[1:], 1)}
    nic: dict[str, object] = {"match": {"macaddress": macs[0]}}
    nic |= {"dhcp4": True} if address is None else {"dhcp4": False, "addresses": [address]}
    if address is not None and seed.gateway:
        nic["routes"] = [{"to": "0.0.0.0/0", "via": seed.gateway}]
    if seed.nameservers:
        nic["nameservers"] = {"addresses": list(seed.nameservers)}
    network = {"version": 2, "ethernets": {"nic0": nic, **others}}
    return {
        "meta-data": json.dumps(meta, indent=1).encode(),
        "user-data": (seed.user_data or "#cloud-config\n{}\n").encode(),
        "network-config": json.dumps(network, indent=1).encode(),
    }


def cd(files: dict[str, bytes]) -> bytes:
    """Return a CD with these files (ISO 9660 with Joliet and Rock Ridge)."""
    import pycdlib  # a fifth of all that an agent imports: only whoever makes a CD loads it

    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for number, (name, data) in enumerate(files.items()):
        iso.add_fp(
            io.BytesIO(data), len(data), f"/FILE{number}.;1", rr_name=name, joliet_path=f"/{name}", file_mode=0o100444
        )
    out = io.BytesIO()
    iso.write_fp(out)
    iso.close()
    return out.getvalue()
