"""What this host has."""

from __future__ import annotations

import asyncio
import os
import platform
import socket

from novacron import __version__, child_environment
from novacron.agent.host import hardware, huge_pages, networks
from novacron.agent.host.volumes import Pools
from novacron.agent.settings import AgentSettings
from novacron.disk.images import LocalImage, have_blank, scan
from novacron.model.devices import HugePages
from novacron.model.errors import InvalidInput
from novacron.model.network import MTU_DEFAULT
from novacron.model.node import Inventory
from novacron.net import tap, wireguard
from novacron.qemu import abilities, firmware, probe
from novacron.telemetry import logs

log = logs.get(__name__)


def _memory_mib() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1 << 20)


async def _qemu_version(binary: str) -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            binary, "--version", stdout=asyncio.subprocess.PIPE, env=child_environment.clean()
        )
    except FileNotFoundError:
        raise InvalidInput(
            f"there is no {binary} on this host", field="qemu", hint="apt-get install qemu-system-x86"
        ) from None
    out, _ = await asyncio.wait_for(process.communicate(), 10)
    words = out.decode().split()
    return words[words.index("version") + 1] if "version" in words else "unknown"


async def take(settings: AgentSettings, dwcp_endpoint: str, pools: Pools) -> tuple[Inventory, dict[str, LocalImage]]:
    """Return the inventory and the images. Raises InvalidInput when QEMU is missing."""
    version = await _qemu_version(settings.qemu_binary)
    accelerator = await probe.remembered(
        settings.qemu_binary, version, settings.state_dir / "accelerator.json", settings.uid_base
    )
    try:
        can = await abilities.look(settings.qemu_binary, accelerator.kind)
    except RuntimeError as error:
        log.warning("guests have all that this host's processor has", error=str(error))
        can = abilities.Abilities(None, ())
    cpu = None if can.cpu is None else can.cpu.without(settings.masked_cpu_flags)
    have_blank(settings.images_dir)
    images, wrong = scan(settings.images_dir)
    for problem in wrong:
        log.warning("image problem", problem=problem)
    missing = list(wrong)
    there, away = pools.look()
    missing += away
    if settings.uid_base is None:
        missing.append("the agent is not root: its VMs are not isolated from each other or from its files")
    lacks = ["no networks of VMs: the agent is not root"] if os.geteuid() != 0 else networks.lacks()
    missing += lacks
    unencrypted = None if lacks else await asyncio.to_thread(wireguard.lacks)
    missing += [unencrypted] if unencrypted else []
    may_encrypt = not lacks and unencrypted is None
    if settings.bridge is None:
        missing.append("no bridge: VMs use QEMU's user-mode network, and others can't reach them")
    elif not tap.is_bridge(settings.bridge):
        raise InvalidInput(f"there is no bridge {settings.bridge!r} on this host", field="bridge")
    bridges = tap.Bridges((), ()) if lacks else await asyncio.to_thread(tap.bridges)
    inventory = Inventory(
        cpus=len(os.sched_getaffinity(0)),
        memory_mib=_memory_mib(),
        architecture=platform.machine(),
        kernel=platform.release(),
        qemu_version=version,
        accelerator=accelerator,
        images=tuple(image.info for image in images.values()),
        bridge=settings.bridge,
        dwcp_endpoint=dwcp_endpoint,
        agent_version=__version__,
        missing=tuple(missing),
        firmware=firmware.offered(),
        tpm=firmware.has_tpm(),
        pools=there,
        cpu=cpu,
        hardware=await asyncio.to_thread(hardware.look),
        machines=can.machines,
        networks=not lacks,
        plugs_nics=True,
        huge_2m_mib=huge_pages.set_aside_mib(HugePages.SIZE_2M),
        huge_1g_mib=huge_pages.set_aside_mib(HugePages.SIZE_1G),
        bridges=bridges.every,
        vlan_bridges=bridges.filter_vlans,
        wireguard=wireguard.public_key(settings.wireguard_key) if may_encrypt else "",
        tunnel_mtu=await asyncio.to_thread(_tunnel_mtu, settings),
        addresses=() if lacks else tuple(await asyncio.to_thread(tap.addresses)),
    )
    return inventory, images


def _tunnel_mtu(settings: AgentSettings) -> int:
    address = networks.tunnel_address(settings)
    mtu = None if address is None else tap.mtu_at(address)
    return mtu or MTU_DEFAULT


def default_name() -> str:
    return socket.gethostname().split(".")[0].lower()
