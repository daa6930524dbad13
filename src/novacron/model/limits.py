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
DISK_MIB_MAX = 64 * 1024 * 1024
REBOOT_S_MAX = 60.0
"""How long a guest may take to boot again before it is reset."""
STOP_TIMEOUT_S_MAX = 600
STOP_TIMEOUT_S_DEFAULT = 15

VCPU_OVERCOMMIT_DEFAULT = 32
"""vCPUs placed for each logical CPU of a node."""
OVERCOMMIT_MAX = 1000
PAGES_LIKELY_KEPT_S = 24 * 3600
"""How long a node that a VM has left is likely to hold pages of it."""
LABELS_MAX = 64
TAINTS_MAX = 32
LOCAL_POOL = "local"
"""The pool that every node has."""
NODE_MEMORY_RESERVE_MIB = 512
"""Memory of a node that is never given to VMs."""

QUOTA_MAX = 2**52
PROJECTS_MAX, USERS_MAX, TOKENS_PER_USER_MAX = 10_000, 100_000, 200
TOKEN_S_MAX, SESSION_S = 10 * 365 * 24 * 3600, 12 * 3600
AUDIT_RETENTION_S, API_LOG_RETENTION_S = 400 * 24 * 3600, 14 * 24 * 3600

REQUEST_BODY_BYTES_MAX = 1024 * 1024
PAGE_SIZE_MAX = 500
BATCH_MAX = 100
PAGE_SIZE_DEFAULT = 100
LONG_POLL_S_MAX = 60
EVENTS_KEPT_IN_MEMORY = 2000
IDEMPOTENCY_KEY_LENGTH_MAX = 200
IDEMPOTENCY_RETENTION_S = 24 * 3600
CHANGES_RETENTION_S = 3600
EVENTS_RETENTION_S = 30 * 24 * 3600
TOMBSTONE_RETENTION_S = 90 * 24 * 3600

HEARTBEAT_INTERVAL_S = 3.0
NODE_LOST_AFTER_S = 16.0
BEATS_REMEMBERED = 8
WATCHED_BY = 2
"""Other nodes that look after each node."""
LINK_MESSAGE_BYTES_MAX = 4 * 1024 * 1024
LINK_QUEUE_MAX = 1024
TICKET_S = 60
CONSOLE_LOG_TAIL_BYTES_MAX = 1024 * 1024
CONSOLE_CHANNELS_PER_NODE_MAX = 64

MIGRATION_PREPARE_S_MAX = 30.0
MIGRATION_STALL_S_MAX = 150.0
MIGRATION_NODE_LOST_S_MAX = 75.0
"""Both are longer than a link may be dead (60 s by default): an outage is to cost itself, not the migration."""
MIGRATIONS_PER_NODE_DEFAULT_MAX, MIGRATIONS_PER_NODE_MAX = 2, 16
"""Active migrations that may touch one node, unless it is set, and at most; more wait as ``pending``."""
CPUS_PER_MIGRATION = 2
"""A node with fewer has one migration at a time: two would each stand still for longer, and take no less in all."""
DRAIN_AHEAD = 1
"""Migrations of a drain that wait already while others run, so that no time passes between them."""
RATE_BYTES_PER_S_MIN = 125_000
RATE_BYTES_PER_S_MAX = 125_000_000_000
"""Of a limit on migrations: 1 Mbit/s to 1 Tbit/s."""
RATE_BYTES_PER_S_USEFUL = 1_250_000
"""A migration waits rather than begin if it, or one that it shares with, would have less than these 10 Mbit/s."""
LINK_WINDOWS_MAX = 20
RESTART_BACKOFF_S_MAX = 60.0
GROWING_MEMORY_MIB_MIN = 256
"""Linux sets 64 MiB aside where memory might come to lie above 4 GiB, and does not boot with what is left of 128."""
MEMORY_SLOTS = 8
"""How often a guest's memory may grow while it runs."""
MEMORY_STEP_MIB = 128
"""By a multiple of this: Linux takes no less."""
VOLUMES_PER_VM_MAX = 16
EXPORTS_PER_NODE_MAX = 8
UPLOAD_S_MAX = 7 * 24 * 3600
"""An upload that is not finished by then is given up."""
EXPORT_RETENTION_S = 24 * 3600
BOOT_ORDER_MAX = 99
IOPS_MIN, IOPS_MAX = 10, 10_000_000
DISK_BYTES_PER_S_MIN, DISK_BYTES_PER_S_MAX = 100_000, 1_000_000_000_000
SHARED_LAYERS_MAX = 8
"""Of a VM's disk: every linked clone of it, and of its clones, adds one."""
IMAGE_FILE_BYTES_MAX = 1 << 40
"""Of a file that is imported, and of the disk in it."""
UPLOAD_PIECE_BYTES_MAX = 2 * 1024 * 1024
"""At most half of a message of the agent link."""
IMPORTS_PER_NODE_MAX = 8
URL_LENGTH_MAX = 2000
PATH_LENGTH_MAX = 1000
DESCRIPTION_LENGTH_MAX = 200
USER_DATA_BYTES_MAX = 16 * 1024
FIRMWARE_STATE_BYTES_MAX = 256 * 1024
SSH_KEYS_MAX = 32
NAMESERVERS_MAX = 8
NICS_PER_VM_MAX = 8
NETWORKS_MAX = 16_000
"""Each has a number of its own, which makes addresses between a network and its gateway's host."""
GROUPS_PER_NIC_MAX = 8
RULES_PER_GROUP_MAX = 128
FORWARDS_PER_NETWORK_MAX = 256
PASSTHROUGH_MAX = 64
