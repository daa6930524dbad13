"""Every limit of the platform, by name."""

from __future__ import annotations

NAME_LENGTH_MAX = 63
VCPUS_MAX = 256
MEMORY_MIB_MIN = 64
MEMORY_MIB_MAX = 4 * 1024 * 1024
SNAPSHOTS_PER_VM_MAX = 64
HA_PRIORITY_MAX, HA_PRIORITY_DEFAULT = 1000, 500
START_ORDER_MAX = 1000
START_ORDER_DEFAULT = 500
START_DELAY_S_MAX = 3600
DISK_MIB_MAX = 64 * 1024 * 1024
REBOOT_S_MAX = 60.0
"""How long a guest may take to reboot before it is reset."""
STOP_TIMEOUT_S_MAX = 600
STOP_TIMEOUT_S_DEFAULT = 15

VCPU_OVERCOMMIT_DEFAULT = 32
"""vCPUs placed for each logical CPU of a node."""
OVERCOMMIT_MAX = 1000
PAGES_LIKELY_KEPT_S = 24 * 3600
"""How long a node is likely to keep pages of a VM that has left it."""
LABELS_MAX = 64
TAINTS_MAX = 32
LOCAL_POOL = "local"
"""The pool that every node has."""
NODE_CPUS_MAX, NODE_MEMORY_MIB_MAX = 8192, 64 * 1024 * 1024
"""A report of more is none."""
NODE_MEMORY_RESERVE_MIB = 512
"""Memory of a node that VMs never get."""

QUOTA_MAX = 2**52
PROJECTS_MAX, USERS_MAX, TOKENS_PER_USER_MAX = 10_000, 100_000, 200
INVITATIONS_PER_PROJECT_MAX, INVITATION_S = 200, 14 * 24 * 3600
TOKEN_S_MAX, DEVICE_S = 10 * 365 * 24 * 3600, 365 * 24 * 3600
AUDIT_RETENTION_S, API_LOG_RETENTION_S = 400 * 24 * 3600, 14 * 24 * 3600

READS_AWAY_S, READS_AWAY_S_MAX = 30.0, 600.0
"""For how long reads are answered from memory while the database is away: by default, at most."""
REQUEST_BODY_BYTES_MAX = 1024 * 1024
PAGE_SIZE_MAX = 500
BATCH_MAX = 100
PAGE_SIZE_DEFAULT = 100
LONG_POLL_S_MAX = 60
EVENTS_KEPT_IN_MEMORY = 2000
IDEMPOTENCY_KEY_LENGTH_MAX = 200
IDEMPOTENCY_RETENTION_S = 24 * 3600
LOGIN_STEP_S_MAX = 600
"""How long a login through a provider may take."""
CHANGES_RETENTION_S = 3600
EVENTS_RETENTION_S = 30 * 24 * 3600
REVOKED_KEY_RETENTION_S = 60 * 24 * 3600
"""Longer than a node's certificate lasts, whatever clocks say."""
CONNECTIONS_MAX = 16_384
"""Of clients, that one process of a server keeps."""
TOMBSTONE_RETENTION_S = 90 * 24 * 3600

HEARTBEAT_INTERVAL_S = 3.0
NODE_LOST_AFTER_S = 16.0
BEATS_REMEMBERED = 8
WATCHED_BY = 2
"""How many other nodes watch each node."""
LINK_MESSAGE_BYTES_MAX = 4 * 1024 * 1024
LINK_QUEUE_MAX = 1024
CONSOLE_QUEUE_BYTES_MAX = 8 * 1024 * 1024
"""Output of one console that waits for its viewer."""
REPORT_QUEUE_BYTES_MAX = 16 * 1024 * 1024
"""Reports of one node that wait to be stored."""
TICKET_S = 60
LOGIN_LINK_S = 300
CONSOLE_LOG_TAIL_BYTES_MAX = 1024 * 1024
CONSOLE_CHANNELS_PER_NODE_MAX = 64
CONSOLES_PER_PROJECT_MAX = CONSOLE_CHANNELS_PER_NODE_MAX // 2
"""Of one project on one node."""

MIGRATION_PREPARE_S_MAX = 30.0
MIGRATION_STALL_S_MAX = 150.0
MIGRATION_NODE_LOST_S_MAX = 75.0
"""Both are longer than a link may be down (60 s by default), so that an outage delays migrations, but ends none."""
MIGRATIONS_PER_NODE_DEFAULT_MAX, MIGRATIONS_PER_NODE_MAX = 2, 16
"""Migrations from or to one node at the same time: the default and the maximum. More wait as ``pending``."""
CPUS_PER_MIGRATION = 2
"""CPUs of a node for each of its migrations. On fewer, each of two would have more downtime, and none ends sooner."""
DRAIN_AHEAD = 1
"""Migrations that a drain queues while others run, so that the next one starts at once."""
RATE_BYTES_PER_S_MIN = 125_000
RATE_BYTES_PER_S_MAX = 125_000_000_000
"""Bounds of a rate limit for migrations: 1 Mbit/s to 1 Tbit/s."""
RATE_BYTES_PER_S_USEFUL = 1_250_000
"""10 Mbit/s. A migration waits if it, or one that shares a budget with it, would get less."""
LINK_WINDOWS_MAX = 20
RESTART_BACKOFF_S_MAX = 60.0
GROWING_MEMORY_MIB_MIN = 256
"""Linux reserves 64 MiB if memory might be added above 4 GiB, and does not boot with the rest of 128 MiB."""
MEMORY_SLOTS = 8
"""How many times a guest's memory may grow while it runs."""
MEMORY_STEP_MIB = 128
"""Memory grows by multiples of this: Linux accepts no smaller step."""
VOLUMES_PER_VM_MAX = 16
SATA_VOLUMES_MAX, IDE_VOLUMES_MAX = 3, 1
NEW_DISKS_PER_VM_MAX = 8
EXPORTS_PER_NODE_MAX = 8
EXPORTS_PER_PROJECT_MAX = EXPORTS_PER_NODE_MAX // 2
"""Of one project on one node: the rest is for others."""
LIVE_RESTORES_PER_NODE_MAX = 4
"""Of each, the index of its repository is in memory, and 64 MiB of its disk."""
BACKUPS_PER_NODE_MAX = 64
"""Backups that wait for one node, or that it makes."""
BACKUPS_PER_PROJECT_MAX = BACKUPS_PER_NODE_MAX // 2
"""Those of one project: the rest is for others."""
BACKUP_REPOSITORIES_PER_PROJECT_MAX = 64
BACKUP_POLICIES_PER_PROJECT_MAX = 64
REPLICAS_PER_VM_MAX = 4
PLANS_PER_PROJECT_MAX = 64
VMS_PER_PLAN_MAX = 100
REPLICA_POINTS_MAX = 16
"""Of one replica that a node may report."""
VMS_PER_BACKUP_POLICY_MAX = 1000
"""VMs that a policy names; all of a project, or those with a tag, are not counted."""
IMPORT_STALL_S_MAX = 24 * 3600
"""An import that does not go on for so long is aborted: it holds a place that others may need."""
UPLOAD_S_MAX = 7 * 24 * 3600
"""An upload that takes longer is aborted."""
EXPORT_RETENTION_S = 24 * 3600
BOOT_ORDER_MAX = 99
DISK_BOOT_ORDER, CDROM_BOOT_ORDER = 1, 2
SERIAL_PORTS_MAX = 3
"""Beyond the console's: a PC has four."""
NUMA_NODES_MAX = 8
NODE_CPUS_RESERVE = 1
"""CPUs of a node that are dedicated to no VM: for the host itself, and for VMs that share."""
CDROMS_PER_VM_MAX = 2
KERNEL_ARGUMENTS_LENGTH_MAX = 1024
IOPS_MIN, IOPS_MAX = 10, 10_000_000
DISK_BYTES_PER_S_MIN, DISK_BYTES_PER_S_MAX = 100_000, 1_000_000_000_000
SHARED_LAYERS_MAX = 8
"""Layers below a VM's disk: every linked clone adds one, clones of clones included."""
IMAGE_FILE_BYTES_MAX = 1 << 40
"""Size of an imported file, and of the disk in it."""
UPLOAD_PIECE_BYTES_MAX = 2 * 1024 * 1024
GUEST_ARGUMENTS_MAX, GUEST_ARGUMENT_LENGTH_MAX, GUEST_PATH_LENGTH_MAX = 256, 16 * 1024, 4096
GUEST_COMMANDS_PER_PROJECT_MAX = 16
"""Requests that wait for guests of a project on one node."""
GUEST_INPUT_BYTES_MAX = 512 * 1024
GUEST_OUTPUT_BYTES_MAX = 1024 * 1024
"""How much is kept of what a command in a guest prints on each of its two outputs."""
GUEST_PIECE_BYTES_MAX = 512 * 1024
"""How much of a file goes into or out of a guest at a time."""
GUEST_FILE_BYTES_MAX = 1 << 40
"""At most half of the largest message of the agent link."""
IMPORTS_PER_NODE_MAX = 8
IMPORTS_PER_PROJECT_MAX = IMPORTS_PER_NODE_MAX // 2
"""Unfinished ones of one project on one node: the rest is for others."""
URL_LENGTH_MAX = 2000
PATH_LENGTH_MAX = 1000
DESCRIPTION_LENGTH_MAX = 4000
IMAGE_FILE_DESCRIPTION_LENGTH_MAX = 200
"""Of the description that is in an image's own file."""
DISPLAY_NAME_LENGTH_MAX = 100
TAG_LENGTH_MAX = 63
TAGS_MAX = 32
USER_DATA_BYTES_MAX = 16 * 1024
FIRMWARE_STATE_BYTES_MAX = 256 * 1024
SSH_KEYS_MAX = 32
NAMESERVERS_MAX = 8
SEARCH_DOMAINS_MAX = 6
NICS_PER_VM_MAX = 8
NETWORKS_MAX = 16_000
"""Each network has its own number, from which the addresses between it and its gateway's host follow."""
GROUPS_PER_NIC_MAX = 8
RULES_PER_GROUP_MAX = 128
FORWARDS_PER_NETWORK_MAX = 256
PASSTHROUGH_MAX = 64
