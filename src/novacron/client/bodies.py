"""What the API's requests take, for type checkers: dictionaries, since the client does not load the model.

Made of the routes' own types by script/generate: change those, and run it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Required, TypedDict

if TYPE_CHECKING:
    from novacron.model.access import Right, Role
    from novacron.model.console import ConsoleKind
    from novacron.model.constraints import AntiAffinityScope, Effect
    from novacron.model.cpu import CpuKind
    from novacron.model.devices import BootDevice, CpuPolicy, DiskBus, HugePages, NicModel, Os, UsbDevice
    from novacron.model.drain import DrainPolicy
    from novacron.model.drill import DrillName, DrillVerdict
    from novacron.model.image import ImageFormat
    from novacron.model.migration import MigrationPolicy
    from novacron.model.network import Direction, Encryption, Ipv6Addresses, NetworkKind, Protocol
    from novacron.model.plan import PlanWait
    from novacron.model.rebalance import RebalanceBasis, RebalanceMode
    from novacron.model.second_factor import FactorKind
    from novacron.model.user import UserKind
    from novacron.model.vm import Display, Firmware, Power, Restart


class AddFloatingAddressBody(TypedDict, total=False):
    """An unused address of the hosts' network."""

    address: Required[str]


class AdoptVmBody(TypedDict, total=False):
    """How to adopt a VM from a node's record."""

    node: str | None
    name: str | None
    project: str | None
    confirm: str | None


class AttachFloatingAddressBody(TypedDict, total=False):
    """The VM to attach it to; ``network``: which of its overlays, if it is in several."""

    vm: Required[str]
    network: str | None


class AttachVolumeBody(TypedDict, total=False):
    """The VM to attach it to, and how. Firmware tries the lowest ``boot_order`` first; the VM's own disk has 1."""

    vm: Required[str]
    read_only: bool
    boot_order: int | None
    bus: DiskBus | Literal["virtio", "scsi", "sata", "ide"]


class BackUpVmBody(TypedDict, total=False):
    """Into which repository, by name or id."""

    repository: Required[str]


class BackupPolicyChangesBody(TypedDict, total=False):
    """What to change of a policy; what is left out stays. ``keep``, ``probe``, ``vms`` and ``tags`` are replaced as a
    whole.
    """

    repository: str
    schedule: str
    time_zone: str
    jitter_s: int
    start_within_s: int | None
    max_age_s: int | None
    keep: KeepBody
    verify_days: int | None
    prove_days: int | None
    probe: ProofProbeBody
    enabled: bool
    vms: Sequence[str]
    tags: Sequence[str]


class BackupRepositoryChangesBody(TypedDict, total=False):
    """What to change of a repository."""

    prune_days: Required[int | None]


class BeginSecondFactorBody(TypedDict, total=False):
    """A new second factor: an authenticator app (``totp``) or a security key (``webauthn``). ``password``: the user's
    present one.
    """

    kind: Required[FactorKind | Literal["totp", "webauthn"]]
    name: Required[str]
    password: Required[str]


class CdromBody(TypedDict, total=False):
    """A CD-ROM drive of a VM."""

    iso: str | None
    boot_order: int | None


class CloneVmBody(TypedDict, total=False):
    """A clone of a VM and its current disk: a full copy or, if ``linked``, sharing layers."""

    name: Required[str]
    linked: bool
    address: str | None
    power: Power | Literal["running", "paused", "stopped"]
    macs: Sequence[str | None] | None


class ConfigureFlavorBody(TypedDict, total=False):
    """What to change; what is left out stays. ``spec`` is replaced as a whole."""

    display_name: str
    description: str
    tags: Sequence[str]
    spec: FlavorSpecBody


class ConfigureMeBody(TypedDict, total=False):
    """Settings of the caller's own. ``default_project``: of new objects; null: the only project, or ``default``."""

    default_project: Required[str | None]


class ConfigureNetworkBody(TypedDict, total=False):
    """What to change; what is left out stays. ``name`` can change only while no VM uses it. Guests learn the others at
    the latest when they renew their lease; a guest's interface has a greater MTU from its VM's next start.
    """

    display_name: str
    description: str
    tags: Sequence[str]
    name: str
    mtu: int
    nameservers: Sequence[str]
    search_domains: Sequence[str]
    is_default: bool


class ConfigureNicBody(TypedDict, total=False):
    """What to change; what is left out stays. In another network the interface gets a free address, unless one is
    named.
    """

    network: str
    address: str | None
    address6: str | None
    groups: Sequence[str]


class ConfigureNodeBody(TypedDict, total=False):
    """What is left out stays as it is; null removes the limit."""

    display_name: str
    description: str
    tags: Sequence[str]
    site: str
    zone: str
    labels: Mapping[str, str]
    taints: Sequence[TaintBody]
    vcpu_overcommit: float
    memory_overcommit: float
    passthrough: Sequence[str]
    migration_rate_bytes_per_s: int | None
    migrations_at_once: int | None


class ConfigureOneBody(TypedDict, total=False):
    """A VM by id or name, and what to change."""

    vm: Required[str]
    changes: Required[ConfigureVmBody]


class ConfigureProjectBody(TypedDict, total=False):
    """What to change; what is left out stays. A quota is replaced as a whole: what it leaves out has no limit.
    ``encryption`` applies to objects created afterwards.
    """

    display_name: str
    description: str
    tags: Sequence[str]
    name: str
    quota: QuotaBody
    host_network: bool
    encryption: bool


class ConfigureSecurityGroupBody(TypedDict, total=False):
    """What to change; what is left out stays. ``rules`` is the complete set of rules."""

    display_name: str
    description: str
    tags: Sequence[str]
    rules: Sequence[RuleSpecBody]


class ConfigureSiteBody(TypedDict, total=False):
    """Ports of the site's gateways that projects may forward to VMs, such as ``30000-32767``."""

    forward_ports: Required[str]


class ConfigureTemplateBody(TypedDict, total=False):
    """What to change; what is left out stays. ``spec`` is replaced as a whole."""

    display_name: str
    description: str
    tags: Sequence[str]
    spec: TemplateSpecBody


class ConfigureUserBody(TypedDict, total=False):
    """Whether the user is disabled, and whether logins with a password demand a second factor; null: as it is."""

    disabled: bool | None
    second_factor_required: bool | None


class ConfigureVmBody(TypedDict, total=False):
    """What to change; what is left out stays. The size changes while the VM is off; while the VM runs it grows up to
    its maxima.
    """

    vcpus: int
    memory_mib: int
    vcpus_max: int | None
    memory_max_mib: int | None
    display: Display | Literal["vga", "none"]
    firmware: Firmware | Literal["bios", "uefi", "uefi-secure"]
    tpm: bool
    restart: Restart | Literal["always", "on-failure", "never"]
    start_order: int
    start_delay_s: int
    protected: bool
    disk_mib: int
    disk_iops: int | None
    disk_bytes_per_s: int | None
    placement: PlacementBody
    ha: bool
    ha_priority: int
    cdroms: Sequence[CdromBody]
    boot_once: BootDevice | Literal["disk", "cdrom", "network"] | None
    os: Os | Literal["other", "linux", "debian12", "windows10", "windows11"]
    disk_bus: DiskBus | Literal["virtio", "scsi", "sata", "ide"]
    disk_boot_order: int | None
    nic_model: NicModel | Literal["virtio", "e1000", "rtl8139"]
    network_boot_order: int | None
    kernel: str | None
    initrd: str | None
    kernel_arguments: str
    smbios_manufacturer: str
    smbios_serial: str
    smbios_asset_tag: str
    serial_ports: int
    usb: Sequence[UsbDevice | Literal["tablet", "keyboard", "mouse"]]
    cpu_policy: CpuPolicy | Literal["shared", "dedicated"]
    hugepages: HugePages | Literal["none", "2M", "1G"]
    numa_nodes: int
    cpu: CpuKind | Literal["baseline", "host"]
    cpu_flags: Sequence[str]
    machine: str | None
    name: str
    security_groups: Sequence[str]
    macs: Sequence[str | None]
    cloud_init: SeedChangesBody
    display_name: str
    description: str
    tags: Sequence[str]


class ConfigureVmsBody(TypedDict, total=False):
    """Changes of VMs."""

    items: Required[Sequence[ConfigureOneBody]]


class ConfigureVolumeBody(TypedDict, total=False):
    """What to change; what is left out stays. It only grows, also while attached; a limit of null means none."""

    display_name: str
    description: str
    tags: Sequence[str]
    name: str
    size_mib: int
    iops: int | None
    bytes_per_s: int | None


class ConfirmSecondFactorBody(TypedDict, total=False):
    """The code that the app shows now, or what the browser's ``navigator.credentials.create`` answered."""

    code: str | None
    credential: Mapping[str, object] | None


class CopyImageBody(TypedDict, total=False):
    """The node to copy an image to, and its source: by default the nearest node that holds it."""

    target: Required[str]
    source: str | None


class CreateBackupPolicyBody(TypedDict, total=False):
    """A new policy of the project. Repository and VMs are given by name or id."""

    repository: Required[str]
    schedule: str
    time_zone: str
    jitter_s: int
    start_within_s: int | None
    max_age_s: int | None
    keep: KeepBody
    verify_days: int | None
    prove_days: int | None
    probe: ProofProbeBody
    enabled: bool
    vms: Sequence[str]
    tags: Sequence[str]
    name: Required[str]


class CreateBackupRepositoryBody(TypedDict, total=False):
    """A new repository of the project's backups. Its key is made here."""

    name: Required[str]
    prune_days: int | None


class CreateFlavorBody(TypedDict, total=False):
    """A new flavor, of the project or, ``shared``, for all of them."""

    name: Required[str]
    spec: Required[FlavorSpecBody]
    shared: bool


class CreateForwardBody(TypedDict, total=False):
    """A port that leads to ``vm_port`` of a VM. ``address``: a floating one; those of the gateway's host if not
    given. ``port``: for a floating address, by default the VM's; for a gateway, one of its site's range (see
    ``GET /sites``), by default a free one.
    """

    vm: Required[str]
    vm_port: Required[int]
    port: int | None
    protocol: Protocol | Literal["any", "tcp", "udp", "icmp"]
    address: str | None
    network: str | None


class CreateGrantBody(TypedDict, total=False):
    """A role for a user, in a project or (null) everywhere; it replaces the role that they had there."""

    user: Required[str]
    role: Required[Role | Literal["viewer", "member", "operator", "administrator"]]
    project: str | None


class CreateJoinTokenBody(TypedDict, total=False):
    """A one-time token with which a host joins as ``node``. ``accept``: it need not be accepted after that."""

    node: Required[str]
    ttl_s: int
    accept: bool


class CreateNetworkBody(TypedDict, total=False):
    """A new network: its own, ``overlay``, or a ``bridge`` that hosts have. ``mtu``: what all nodes carry if not
    given. ``is_default``: VMs that are created without naming a network are in this one from now on.
    """

    name: Required[str]
    kind: NetworkKind | Literal["overlay", "bridge"]
    subnet: str | None
    subnet6: str | None
    ipv6_addresses: Ipv6Addresses | Literal["dhcp", "slaac"]
    nat: bool
    nameservers: Sequence[str]
    search_domains: Sequence[str]
    bridge: str | None
    vlan: int | None
    mtu: int | None
    encryption: Encryption | Literal["between-sites", "always", "never"]
    is_default: bool


class CreatePlanBody(TypedDict, total=False):
    """A new recovery plan of the project: its VMs, by name or id, in the order in which they go on."""

    name: Required[str]
    vms: Required[Sequence[PlanVmBody]]


class CreateProjectBody(TypedDict, total=False):
    """A new project. ``host_network``: its VMs may be on the hosts' network; otherwise each needs one of its own.
    ``encryption``: what it creates is encrypted at rest.
    """

    name: Required[str]
    description: str
    quota: QuotaBody
    host_network: bool
    encryption: bool


class CreateSecurityGroupBody(TypedDict, total=False):
    """A new security group. Traffic that no rule allows is blocked at the interfaces that have it."""

    name: Required[str]
    rules: Sequence[RuleSpecBody]


class CreateSnapshotBody(TypedDict, total=False):
    """What is kept: the disk; with ``memory`` that too, for which the guest stands still. With ``quiesce`` the guest's
    agent first writes out what programs and file systems have.
    """

    name: Required[str]
    memory: bool
    quiesce: bool


class CreateTemplateBody(TypedDict, total=False):
    """A new template, of the project or, ``shared``, for all of them: with its fields, or like a VM that exists."""

    name: Required[str]
    spec: TemplateSpecBody | None
    vm: str | None
    shared: bool


class CreateTokenBody(TypedDict, total=False):
    """A token of the caller's own, or of another ``user`` whom the caller manages. It does what its user may, within
    ``scopes`` and in one ``project``, if those are given, until it expires.
    """

    name: Required[str]
    user: str | None
    scopes: Sequence[Right | Literal["read", "write", "operate", "manage", "console", "metrics", "join"]] | None
    project: str | None
    expires_in_s: int | None


class CreateUserBody(TypedDict, total=False):
    """A new user: a person, with a password or none yet; or a service account, of one project or (null) of none."""

    name: Required[str]
    kind: UserKind | Literal["person", "service"]
    password: str | None
    project: str | None


class CreateVmBody(TypedDict, total=False):
    """A new VM. The platform chooses a node unless ``node`` names one. Fields that are left out are those of
    ``flavor``, then those of ``template``, then the usual ones.

    ``nics`` left out: the VM is in the default network of its project, if there is one. An empty list: in none.
    """

    image: str
    vcpus_max: int | None
    memory_max_mib: int | None
    address: str | None
    mac: str | None
    power: Power | Literal["running", "paused", "stopped"]
    restart: Restart | Literal["always", "on-failure", "never"]
    start_order: int
    start_delay_s: int
    protected: bool
    display: Display | Literal["vga", "none"]
    disk_mib: int | None
    disk_iops: int | None
    disk_bytes_per_s: int | None
    placement: PlacementBody
    ha: bool
    ha_priority: int
    own_disk: bool
    cpu: CpuKind | Literal["baseline", "host"]
    cpu_flags: Sequence[str]
    machine: str | None
    devices: Sequence[str]
    os: Os | Literal["other", "linux", "debian12", "windows10", "windows11"]
    disk_boot_order: int | None
    network_boot_order: int | None
    cdroms: Sequence[CdromBody]
    boot_once: BootDevice | Literal["disk", "cdrom", "network"] | None
    kernel: str | None
    initrd: str | None
    kernel_arguments: str
    smbios_manufacturer: str
    smbios_serial: str
    smbios_asset_tag: str
    serial_ports: int
    usb: Sequence[UsbDevice | Literal["tablet", "keyboard", "mouse"]]
    cpu_policy: CpuPolicy | Literal["shared", "dedicated"]
    hugepages: HugePages | Literal["none", "2M", "1G"]
    numa_nodes: int
    vcpus: int
    memory_mib: int
    firmware: Firmware | Literal["bios", "uefi", "uefi-secure"]
    tpm: bool
    nics: Sequence[NicSpecBody]
    disk_bus: DiskBus | Literal["virtio", "scsi", "sata", "ide"]
    nic_model: NicModel | Literal["virtio", "e1000", "rtl8139"]
    name: Required[str]
    flavor: str | None
    template: str | None
    node: str | None
    cloud_init: SeedBody | None
    firmware_state: FirmwareStateBody | None
    display_name: str
    description: str
    tags: Sequence[str]
    disks: Sequence[NewDiskBody]


class CreateVmsBody(TypedDict, total=False):
    """New VMs."""

    items: Required[Sequence[CreateVmBody]]


class CreateVolumeBody(TypedDict, total=False):
    """A new volume, empty or a copy of an image's disk. ``node``: by default the one with most room in the pool."""

    name: Required[str]
    size_mib: Required[int]
    pool: str
    node: str | None
    image: str | None
    iops: int | None
    bytes_per_s: int | None


class DeleteVmsBody(TypedDict, total=False):
    """VMs by id or name."""

    vms: Required[Sequence[str]]


class DrainNodeBody(TypedDict, total=False):
    """What to do with guests that dirty memory faster than the link can send it."""

    policy: DrainPolicy | Literal["throttle", "post-copy", "leave"]
    time_limit_s: int | None


class DrillFiguresBody(TypedDict, total=False):
    """Times of a drill, measured or promised; null: it has no such time."""

    detect_s: float | None
    recover_s: float | None
    loss_s: float | None


class DrillStepBody(TypedDict, total=False):
    """A step of a run."""

    name: Required[str]
    took_s: Required[float]
    passed: bool
    said: str


class EraseKeyBody(TypedDict, total=False):
    """``confirm`` is the project's name once more: what its key encrypts is lost for ever."""

    confirm: Required[str]


class EraseUserBody(TypedDict, total=False):
    """The user to erase, by id or name."""

    user: Required[str]


class FailOverPlanBody(TypedDict, total=False):
    """``confirm``: the names of the nodes that are gone, whose hosts are off. A node that a fence command has cut off
    needs none.
    """

    confirm: Sequence[str]


class FailOverVmBody(TypedDict, total=False):
    """The replica and point to continue from; default: the newest. ``confirm``: the name of its node, which is off;
    needed unless a fence command has cut it off.
    """

    replica: str | None
    point: int | None
    confirm: str | None


class FinishKeyBody(TypedDict, total=False):
    """How a key's rotation is finished."""

    force: bool


class FirmwareStateBody(TypedDict, total=False):
    """Firmware state of an exported VM, for the VM made from it. It is secret: keys in a TPM can unlock the disk."""

    nvram: str | None
    tpm: str | None


class FlavorSpecBody(TypedDict, total=False):
    """A size of VMs."""

    vcpus: Required[int]
    memory_mib: Required[int]
    disk_mib: int | None
    labels: Mapping[str, str]


class ForeseeMigrationBody(TypedDict, total=False):
    """The target node of the estimate; without ``target`` the platform chooses."""

    target: str | None


class ForgetVmBody(TypedDict, total=False):
    """Deletes the nodes' copies of a VM: the database is right."""

    confirm: str | None


class ImportImageBody(TypedDict, total=False):
    """A disk that becomes an image. Just one of ``url``, ``path``, ``size_bytes`` and ``catalogue_image`` says where it
    comes from: fetched over HTTP, found below the node's directory for imports, uploaded in pieces, or fetched as a
    catalogue of the server's says.
    """

    name: Required[str]
    url: str | None
    path: str | None
    size_bytes: int | None
    catalogue_image: str | None
    sha256: str | None
    format: ImageFormat | Literal["raw", "qcow2", "vmdk", "vdi", "vhd", "vhdx", "iso", "boot-file"] | None
    description: str
    node: str | None
    shared: bool | None


class JoinBody(TypedDict, total=False):
    """A host that joins: its name, the secret of its join token, and a certificate request (PEM)."""

    name: Required[str]
    secret: Required[str]
    csr: Required[str]


class KeepBody(TypedDict, total=False):
    """How many to keep by each rule. A backup is kept if any rule keeps it."""

    last: int
    hourly: int
    daily: int
    weekly: int
    monthly: int
    yearly: int


class LinkSpecBody(TypedDict, total=False):
    """The rate that all migrations between two sites share."""

    rate_bytes_per_s: Required[int]
    schedule: Sequence[WindowBody]


class LogLevelBody(TypedDict, total=False):
    """The least severe level that is logged."""

    level: Required[Literal["debug", "info", "warning", "error"]]


class LoginBody(TypedDict, total=False):
    """A user's name and password."""

    user: Required[str]
    password: Required[str]


class LoginSecondFactorBody(TypedDict, total=False):
    """The step of the login's answer, with one of: an app's code, what the browser's ``navigator.credentials.get``
    answered, or a recovery code.
    """

    step: Required[str]
    code: str | None
    credential: Mapping[str, object] | None
    recovery_code: str | None


class LoginWithLinkBody(TypedDict, total=False):
    """What follows ``#login=`` in a link's path."""

    secret: Required[str]


class MetadataChangesBody(TypedDict, total=False):
    """What to change; what is left out stays. ``tags`` replaces all of them."""

    display_name: str
    description: str
    tags: Sequence[str]


class MigrateVmBody(TypedDict, total=False):
    """Where to move the VM (default: chosen by the platform), its bandwidth limit, its weight among migrations that
    share a link, and what to do if the guest writes too fast.
    """

    target: str | None
    weight: int
    rate_limit_bytes_per_s: int | None
    policy: MigrationPolicy | Literal["throttle", "go-on", "post-copy"]
    warm: bool


class MoveImageBody(TypedDict, total=False):
    """The project that is to own the image; null: all projects may use it, which takes a role in all projects."""

    project: Required[str | None]


class MoveToProjectBody(TypedDict, total=False):
    """The project to move it to."""

    project: Required[str]


class NetworkEncryptionBody(TypedDict, total=False):
    """What the fleet's settings say of networks' traffic between nodes."""

    always: Required[bool]


class NewCommandBody(TypedDict, total=False):
    """A program with its arguments, as the guest's agent starts it: with its own rights, without a shell."""

    arguments: Required[Sequence[str]]
    environment: Sequence[str]
    input: str


class NewDiskBody(TypedDict, total=False):
    """A disk that is made with a VM, beside its own: a volume that is deleted with the VM, unless it is detached."""

    size_mib: Required[int]
    bus: DiskBus | Literal["virtio", "scsi", "sata", "ide"] | None
    image: str | None
    boot_order: int | None
    pool: str


class NicSpecBody(TypedDict, total=False):
    """A network interface of a VM."""

    network: Required[str]
    address: str | None
    mac: str | None
    groups: Sequence[str]
    address6: str | None


class OpenConsoleBody(TypedDict, total=False):
    """Which console: a serial port, or the display."""

    kind: ConsoleKind | Literal["serial", "display"]
    serial: int


class OpenPortBody(TypedDict, total=False):
    """Which TCP port of the VM."""

    port: int


class PasswordBody(TypedDict, total=False):
    """The user's present password."""

    password: Required[str]


class PlacementBody(TypedDict, total=False):
    """Where a VM may be placed. VMs that name the same group belong to it."""

    labels: Mapping[str, str]
    tolerations: Sequence[str]
    affinity: str | None
    anti_affinity: str | None
    anti_affinity_scope: AntiAffinityScope | Literal["node", "zone", "site"]
    spread: str | None


class PlanVmBody(TypedDict, total=False):
    """A VM of a plan, by its id. It is started ``delay_s`` after the one before is well."""

    vm: Required[str]
    delay_s: int
    wait_for: PlanWait | Literal["running", "guest-agent"]
    timeout_s: int


class ProbeLinkBody(TypedDict, total=False):
    """Two nodes, and how long to send data from one to the other, which uses the whole link."""

    source: Required[str]
    target: Required[str]
    seconds: float


class ProofProbeBody(TypedDict, total=False):
    """What shows that the VM has started. All given conditions must hold; default: the guest agent answers."""

    command: Sequence[str]
    line: str
    timeout_s: int


class QuotaBody(TypedDict, total=False):
    """Limits of a project; None: no limit."""

    vms: int | None
    vcpus: int | None
    memory_mib: int | None
    disk_mib: int | None
    snapshots: int | None
    snapshot_mib: int | None
    images: int | None
    image_mib: int | None
    backups: int | None
    backup_mib: int | None
    networks: int | None
    forwards: int | None
    migrations: int | None


class RecordDrillBody(TypedDict, total=False):
    """How a run of a drill went."""

    drill: Required[DrillName | Literal["database-restore", "backup-proofs", "runbooks", "certificates"]]
    verdict: Required[DrillVerdict | Literal["passed", "failed"]]
    started_at: Required[str]
    ended_at: Required[str]
    version: Required[str]
    machine: Required[str]
    measured: DrillFiguresBody
    promised: DrillFiguresBody
    steps: Sequence[DrillStepBody]
    error: str


class RecoverVmBody(TypedDict, total=False):
    """How a VM is recovered whose node is gone."""

    confirm: str | None
    discard_disk: bool


class RenameNodeBody(TypedDict, total=False):
    """The new name; the node's agent adopts it by itself."""

    name: Required[str]


class ReplicaChangesBody(TypedDict, total=False):
    """What to change of a replica; what is left out stays."""

    rpo_s: int
    points: int


class ReplicateVmBody(TypedDict, total=False):
    """Where to: a site, of which the platform chooses a node, or a node."""

    site: str | None
    node: str | None
    rpo_s: int
    points: int


class RestoreBackupBody(TypedDict, total=False):
    """The VM to make of a backup. ``node``: by default the one that made the backup. ``keep_macs``: give it the MAC
    addresses of the VM that was backed up, or (false) new ones; by default those that no other VM has. ``live``: it
    runs at once, and reads from the backup what its node does not have yet; ``bytes_per_s``: of a live restore, how
    much of the disk is fetched in a second beside what the guest reads.
    """

    name: Required[str]
    node: str | None
    power: Power | Literal["running", "paused", "stopped"]
    keep_macs: bool | None
    live: bool
    bytes_per_s: int | None


class RuleSpecBody(TypedDict, total=False):
    """A rule that allows traffic. ``cidr`` or ``group``: the other end; neither: anywhere."""

    direction: Direction | Literal["in", "out"]
    protocol: Protocol | Literal["any", "tcp", "udp", "icmp"]
    ports: str | None
    cidr: str | None
    group: str | None


class ScheduleMigrationBody(TypedDict, total=False):
    """A scheduled migration: earliest start, deadline, or both. With a deadline it begins when the VM is usually
    least busy; otherwise as early as possible. A deadline without ``not_before`` counts from now.
    """

    target: str | None
    weight: int
    rate_limit_bytes_per_s: int | None
    policy: MigrationPolicy | Literal["throttle", "go-on", "post-copy"]
    warm: bool
    not_before: str | None
    deadline: str | None


class ScriptErrorBody(TypedDict, total=False):
    """An error of a script. Don't trust it: whoever has a session can report anything."""

    message: Required[str]
    stack: str
    page: str


class SeedBody(TypedDict, total=False):
    """First-boot data for cloud-init (NoCloud). An omitted field leaves the image's own setting."""

    hostname: str | None
    ssh_keys: Sequence[str]
    user_data: str
    gateway: str | None
    nameservers: Sequence[str]


class SeedChangesBody(TypedDict, total=False):
    """What to change of it; what is left out stays."""

    hostname: str | None
    ssh_keys: Sequence[str]
    user_data: str
    gateway: str | None
    nameservers: Sequence[str]


class SetPasswordBody(TypedDict, total=False):
    """A new password. A user who changes their own password must send the present one, if there is one."""

    password: Required[str]
    present: str | None


class SettingsBody(TypedDict, total=False):
    """The policy by which the fleet is rebalanced."""

    mode: RebalanceMode | Literal["off", "advise", "auto"]
    imbalance_min: float
    rounds: int
    gain_min: float
    cost_per_s: float
    cool_down_s: int
    concurrency: int
    basis: RebalanceBasis | Literal["forecast", "average"]
    cpu_share: float
    overload_minutes_min: float
    relief_minutes_min: float
    cost_per_minute: float


class StopVmBody(TypedDict, total=False):
    """How to stop: the guest has ``timeout_s`` seconds to power off before it is forced to; 0 forces at once."""

    timeout_s: int


class TaintBody(TypedDict, total=False):
    """A reason to keep VMs away from a node. VMs that tolerate its key may be placed there."""

    key: Required[str]
    effect: Effect | Literal["no-schedule", "avoid"]


class TemplateNicBody(TypedDict, total=False):
    """A network interface, without the addresses that each VM has of its own."""

    network: Required[str]
    groups: Sequence[str]


class TemplateSpecBody(TypedDict, total=False):
    """Fields of a VM, without those unique to one VM. Fields that are left out have their usual defaults."""

    image: str
    vcpus: int
    memory_mib: int
    vcpus_max: int | None
    memory_max_mib: int | None
    restart: Restart | Literal["always", "on-failure", "never"]
    start_order: int
    start_delay_s: int
    protected: bool
    display: Display | Literal["vga", "none"]
    firmware: Firmware | Literal["bios", "uefi", "uefi-secure"]
    tpm: bool
    disk_mib: int | None
    disk_iops: int | None
    disk_bytes_per_s: int | None
    placement: PlacementBody
    ha: bool
    ha_priority: int
    own_disk: bool
    cpu: CpuKind | Literal["baseline", "host"]
    cpu_flags: Sequence[str]
    machine: str | None
    devices: Sequence[str]
    nics: Sequence[TemplateNicBody]
    os: Os | Literal["other", "linux", "debian12", "windows10", "windows11"]
    disk_bus: DiskBus | Literal["virtio", "scsi", "sata", "ide"]
    disk_boot_order: int | None
    nic_model: NicModel | Literal["virtio", "e1000", "rtl8139"]
    network_boot_order: int | None
    cdroms: Sequence[CdromBody]
    kernel: str | None
    initrd: str | None
    kernel_arguments: str
    smbios_manufacturer: str
    serial_ports: int
    usb: Sequence[UsbDevice | Literal["tablet", "keyboard", "mouse"]]
    cpu_policy: CpuPolicy | Literal["shared", "dedicated"]
    hugepages: HugePages | Literal["none", "2M", "1G"]
    numa_nodes: int


class TryReplicaBody(TypedDict, total=False):
    """The name of the VM that is made of a replica, and of which point; by default the newest."""

    name: Required[str]
    point: int | None


class UncordonBody(TypedDict, total=False):
    """Whether the VMs that the node's last drain moved away come back."""

    bring_back: bool


class WindowBody(TypedDict, total=False):
    """A time of day with a lower rate. Times are UTC. A window whose end is before its start ends on the next day."""

    start: Required[str]
    end: Required[str]
    rate_bytes_per_s: Required[int]
    days: Sequence[int]
