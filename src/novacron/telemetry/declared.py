"""Every metric: name, kind, labels, meaning. Names follow Prometheus' rules (base units,
``_total`` for counters); the page docs/reference/metrics.md is made of this (``python -m novacron.telemetry.page``).
Agents' metrics have no label for their node: the scraper adds one (``/metrics/targets``)."""

from __future__ import annotations

import itertools
from enum import StrEnum

import msgspec


class MetricKind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Together(StrEnum):
    """What the processes of one server are together."""

    SUM = "sum"
    MAX = "max"
    SEEN = "seen"
    """Each process sees the whole: whichever is asked answers."""


class Family(msgspec.Struct, frozen=True):
    """Metrics of one name. ``buckets`` are the upper bounds of a histogram, in its unit."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    together: Together = Together.SUM
    known: tuple[tuple[str, ...], ...] = ()
    """Values of a counter's labels that are there from the start: Prometheus sees no increase from nothing."""


REQUESTS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
QUERIES_S = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
STEPS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
DURATIONS_S = (0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
DOWNTIMES_S = (0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30)


def _counter(name: str, help: str, *labels: str) -> Family:
    return Family(name, MetricKind.COUNTER, help, labels)


def _counter_of(name: str, help: str, label: str, *known: str) -> Family:
    """Declare a counter whose only label has these values."""
    return Family(name, MetricKind.COUNTER, help, (label,), known=tuple((value,) for value in known))


def _gauge(name: str, help: str, *labels: str, together: Together = Together.SUM) -> Family:
    return Family(name, MetricKind.GAUGE, help, labels, together=together)


def _seen(name: str, help: str, *labels: str) -> Family:
    return Family(name, MetricKind.GAUGE, help, labels, together=Together.SEEN)


def _histogram(name: str, help: str, *labels: str, buckets: tuple[float, ...]) -> Family:
    return Family(name, MetricKind.HISTOGRAM, help, labels, buckets)


API = (
    _counter("novacron_api_requests_total", "Requests that were answered.", "method", "route", "status"),
    _histogram(
        "novacron_api_request_duration_seconds", "From a request's arrival to its answer, as the server sees it.",
        "method", "route", buckets=REQUESTS_S,
    ),
    _gauge("novacron_api_requests_in_progress", "Requests that are worked on: not those answered from the cache."),
    _counter(
        "novacron_api_refused_total", "Requests that were turned away before they were looked at: beyond a rate"
        " (rate), too many at once in all (overload) or of one caller (slots), whose body came too late (body), or that"
        " took too long (timeout).", "reason",
    ),
    _gauge("novacron_api_connections", "Connections of clients that are open."),
    _counter(
        "novacron_api_connections_closed_total", "Connections that the server closed because no request was made over"
        " them for too long (idle), or there were too many (full).", "reason",
    ),
    _counter("novacron_api_cached_answers_total", "Answers that were there already, with no route asked."),
    _gauge("novacron_api_followers", "Streams of changes that are open."),
    _counter("novacron_api_followers_cut_total", "Followers that were cut off because they read too slowly."),
    _counter(
        "novacron_api_records_lost_total",
        "Refusals and calls that were not written to the audit and API logs: too many waited.",
    ),
)  # fmt: skip
FEED = (
    _gauge(
        "novacron_feed_lag_seconds",
        "For how long a process has not had everything that was written; its reads are as old.",
        together=Together.MAX,
    ),
    _counter("novacron_feed_batches_total", "Batches of changes that were taken in."),
    _counter("novacron_feed_changes_total", "Changes that were taken in, by kind of object.", "kind"),
    _counter(
        "novacron_feed_skipped_changes_total",
        "Changes that were left out, by reason: a kind of object that this server does not know, or a defect.",
        "reason",
    ),
    _histogram("novacron_feed_apply_duration_seconds", "Taking a batch of changes in.", buckets=STEPS_S),
    _counter("novacron_feed_losses_total", "How often the feed was lost: the database was away."),
    _seen("novacron_cache_objects", "Objects that are held in memory, by kind.", "kind"),
)
DATABASE = (
    _gauge("novacron_database_connections", "Connections of the pools, used or idle.", "state"),
    _gauge("novacron_database_connections_max", "Connections that the pools may have."),
    _histogram(
        "novacron_database_acquire_duration_seconds", "Waiting for a connection of the pool.", buckets=QUERIES_S
    ),
    _histogram(
        "novacron_database_query_duration_seconds", "Queries, by their first word.", "operation", buckets=QUERIES_S
    ),
    _counter_of(
        "novacron_database_transactions_total", "Transactions, by how they ended: committed, overtaken by another, or"
        " failed.", "outcome", "committed", "overtaken", "failed",
    ),
    _counter("novacron_database_unavailable_total", "How often the database could not be reached or did not answer."),
    _counter("novacron_database_bad_rows_total", "Rows that could not be decoded and were left out, each time.",
             "table"),
    _gauge("novacron_database_size_bytes", "Size of the database.", together=Together.MAX),
    _gauge("novacron_database_sessions", "Sessions that PostgreSQL has, from everywhere.", together=Together.MAX),
    _gauge("novacron_database_sessions_max", "Sessions that PostgreSQL may have.", together=Together.MAX),
    _gauge("novacron_database_longest_transaction_seconds", "For how long the oldest transaction has been open.",
           together=Together.MAX),
    _gauge("novacron_database_dead_rows", "Rows that wait to be vacuumed.", together=Together.MAX),
    _gauge("novacron_database_archiving", "1 where PostgreSQL archives its log (archive_mode).", together=Together.MAX),
    _gauge("novacron_database_archived_timestamp_seconds", "When a piece of the log was last archived; 0: never.",
           together=Together.MAX),
    _gauge("novacron_database_archive_failures", "How often archiving has failed since PostgreSQL's statistics began.",
           together=Together.MAX),
    _gauge("novacron_database_wal_archiving", "1 where this server is to archive the database's WAL into a repository.",
           together=Together.MAX),
    _gauge("novacron_database_wal_archived_timestamp_seconds",
           "All that was committed before is in the repository, by the database's clock; 0: not known to this server.",
           together=Together.MAX),
    _counter("novacron_database_wal_failures_total",
             "How often WAL could not be received or stored, or a base backup could not be made."),
    _gauge("novacron_database_base_backup_timestamp_seconds",
           "When the newest base backup in the repository was made; 0: not known to this server.",
           together=Together.MAX),
    _gauge("novacron_database_base_backup_interval_seconds", "How often this server is to make a base backup.",
           together=Together.MAX),
    _gauge("novacron_database_replicas", "Replicas that follow the database.", together=Together.MAX),
)  # fmt: skip
CONTROLLERS = (
    _counter("novacron_controller_steps_total", "Steps of controllers, by how they ended.", "controller", "outcome"),
    _histogram(
        "novacron_controller_step_duration_seconds", "A controller's step.", "controller", buckets=STEPS_S
    ),
    _counter(
        "novacron_controller_objects_total", "Objects that controllers have reconciled, by how that ended: done,"
        " failed, timeout or defect.", "controller", "outcome",
    ),
    _counter("novacron_placement_index_misses_total", "Placements that the index in memory, which lags behind the"
             " database, decided wrongly, and that were decided anew before they were stored."),
    _gauge("novacron_controller_failing_objects", "Objects that failed last time, and wait to be tried again.",
           "controller"),
    _gauge("novacron_controller_leading", "1 where a controller runs.", "controller"),
    _gauge(
        "novacron_controller_last_step_timestamp_seconds", "When a controller's last good step ended.", "controller",
        together=Together.MAX,
    ),
)  # fmt: skip
AUDIT = (
    _counter("novacron_audit_chained_records_total", "Records of the audit log that were chained."),
    _gauge("novacron_audit_unchained_seconds", "How old the oldest record of the audit log is that is not chained yet.",
           together=Together.MAX),
    _counter("novacron_audit_sent_records_total", "Records of the audit log that were sent elsewhere.", "sink"),
)  # fmt: skip
LINK = (
    _gauge("novacron_link_nodes", "Nodes that are connected to this server."),
    _counter(
        "novacron_link_connections_total", "Connections of nodes, by what became of them: accepted, or refused.",
        "outcome",
    ),
    _counter("novacron_link_messages_total", "Messages of nodes, by type.", "type"),
    _counter("novacron_link_statements_total", "What nodes were told of VMs."),
    _counter(
        "novacron_link_readings_total", "How often it was read what nodes are to be told: all of one node, or what has"
        " changed.", "scope",
    ),
    _counter("novacron_link_questions_total", "Questions to nodes, by how they ended.", "question", "outcome"),
    _histogram("novacron_link_question_duration_seconds", "From a question to a node to its answer.", "question",
               buckets=REQUESTS_S),
    _histogram("novacron_link_heartbeats_store_duration_seconds", "Storing the heartbeats of some milliseconds.",
               buckets=STEPS_S),
    _counter_of("novacron_link_heartbeats_total", "Heartbeats, by whether they were stored.", "outcome", "stored",
                "failed"),
    _counter("novacron_link_reports_total", "Reports of VMs, by whether they were stored.", "outcome"),
    _gauge("novacron_link_reports_waiting", "Reports of VMs that wait to be stored."),
    _gauge("novacron_link_consoles", "Consoles that are open."),
    _counter_of("novacron_link_skipped_messages_total", "Messages of nodes that were skipped: not understood"
                " (undecodable), or met a defect (defect).", "reason", "undecodable", "defect"),
    _counter("novacron_link_breaks_total", "Connections of nodes that were given up because of an error."),
)  # fmt: skip
MIGRATIONS = (
    _counter("novacron_migrations_total", "Migrations that have ended.", "kind", "outcome"),
    _histogram("novacron_migration_duration_seconds", "From the start of a migration that completed to its end.",
               "kind", buckets=DURATIONS_S),
    _histogram("novacron_migration_downtime_seconds", "How long the guest stood still, as the server saw it.",
               buckets=DOWNTIMES_S),
    _counter("novacron_dwcp_stream_bytes_total", "What QEMU gave to DWCP in migrations that have ended."),
    _counter("novacron_dwcp_wire_bytes_total", "What DWCP put on links for it, before TLS and TCP headers."),
    _counter(
        "novacron_dwcp_saved_bytes_total",
        "What did not have to be sent as it is: zeros, pages known from this session, the image, a sibling, a"
        " checkpoint, differences, and what compression took away.", "by",
    ),
    _counter("novacron_dwcp_retransmits_total", "TCP segments that were sent again."),
    _counter("novacron_dwcp_resumed_sessions_total", "How often a session went on after all its connections were"
             " lost."),
    _counter("novacron_dwcp_repaired_pages_total", "Pages that were damaged in a target's store, and sent."),
    _seen("novacron_migrations_active", "Migrations under way.", "phase"),
    _seen("novacron_dwcp_rate_bytes_per_second", "What DWCP puts on a link now.", "source", "target"),
    _seen("novacron_dwcp_streams", "Connections that carry migrations now.", "source", "target"),
    _seen("novacron_dwcp_round_trip_seconds", "Round trip as TCP sees it, queues included.", "source", "target"),
    _seen("novacron_migration_remaining_bytes", "Memory that has not gone over yet.", "source", "target"),
    _seen("novacron_migration_disk_remaining_bytes", "Disk not mirrored yet.", "source", "target"),
)  # fmt: skip
FLEET = (
    _seen("novacron_vms", "VMs, by state.", "state"),
    _seen("novacron_vms_highly_available", "VMs that are started elsewhere when their node fails."),
    _seen("novacron_vms_unplaced", "VMs that have no node."),
    _seen("novacron_vms_unreconciled", "VMs of which a node knows more than the database."),
    _seen("novacron_nodes_unheard", "Nodes that may know more than the database, not heard since."),
    _seen("novacron_vm_crashes", "How often VMs that there are have crashed, together."),
    _seen("novacron_node_ready", "1 while a node is connected.", "node", "site"),
    _seen("novacron_node_schedulable", "1 where VMs may be placed.", "node"),
    _seen("novacron_node_cpus", "Processors of a node.", "node"),
    _seen("novacron_node_memory_bytes", "Memory of a node.", "node"),
    _seen("novacron_node_vms", "VMs on a node.", "node"),
    _seen("novacron_node_vcpus_allocated", "vCPUs of the VMs on a node.", "node"),
    _seen("novacron_node_memory_allocated_bytes", "Memory of the VMs on a node.", "node"),
    _seen("novacron_node_condition", "A node's conditions: 1 as it should be, 0 not, -1 unknown.", "node", "type"),
    _seen("novacron_node_clock_skew_seconds", "By how much a node's clock is ahead; 0 if it may be right.", "node"),
    _seen(
        "novacron_node_certificate_expiry_timestamp_seconds",
        "When the certificate of a node's agent ends, connected or not; 0: not known yet.",
        "node",
    ),
    _seen("novacron_node_images", "Images on a node.", "node"),
    _seen("novacron_volumes", "Volumes, by phase.", "phase"),
    _seen("novacron_volume_bytes", "Size of all volumes."),
    _seen("novacron_snapshots", "Snapshots, by phase.", "phase"),
    _seen("novacron_imports", "Imports, by phase.", "phase"),
    _seen("novacron_exports", "Exports, by phase.", "phase"),
    _seen("novacron_backups", "Backups of VMs, by phase.", "phase"),
    _seen("novacron_backup_policies", "Enabled backup policies."),
    _seen(
        "novacron_replicas",
        "Replicas of VMs, by their newest point: the first one is to come (waiting), it is as young as promised"
        " (current), or it is not (late).",
        "state",
    ),
    _seen(
        "novacron_replica_age_seconds",
        "How old the newest point of a replica is: what its VM would lose.",
        "project",
        "vm",
        "node",
    ),
    _seen(
        "novacron_backup_repository_prunes_failed",
        "Repositories of backups whose room could not be freed, counted once for each node.",
    ),
    _seen("novacron_backup_policy_problems", "VMs that a backup policy can't back up now.", "project", "policy"),
    _seen(
        "novacron_vms_backup",
        "VMs, by their backups: no policy covers them (unprotected), the first one is to come (waiting), the newest"
        " one is as young as promised (current), or it is not (late).",
        "state",
    ),
    _seen("novacron_vms_backup_unverified", "VMs that a policy backs up, and of which no backup was ever read back."),
    _seen("novacron_vms_backup_proof_failed", "VMs whose newest proof failed: no VM made of the backup started."),
    _seen("novacron_drains_active", "Drains that have not ended."),
    _seen(
        "novacron_drill_age_seconds",
        "Time since a drill was run last; before its first run, since the installation began.",
        "drill",
    ),
    _seen("novacron_drill_failed", "1 for a drill whose last run failed.", "drill"),
    _seen("novacron_drill_detect_seconds", "Until the last run of a drill noticed its fault.", "drill"),
    _seen("novacron_drill_recover_seconds", "Until the last run of a drill had recovered (RTO).", "drill"),
    _seen("novacron_drill_loss_seconds", "How far back the last run of a drill lost changes (RPO).", "drill"),
    _seen(
        "novacron_runbook_tested_timestamp_seconds",
        "When a runbook was executed against its fault last, since 1970, as its page says; 0: never.",
        "runbook",
    ),
    _seen(
        "novacron_runbook_detect_seconds",
        "Until the fault that a runbook ends was found by an alert, when it was executed last, as its page says.",
        "runbook",
        "alert",
    ),
    _seen(
        "novacron_runbook_recover_seconds",
        "From then until the runbook had ended with all well again.",
        "runbook",
        "alert",
    ),
    _seen("novacron_networks", "Networks."),
    _seen("novacron_network_hindered", "1 for a network that does not work as asked, with why.", "network", "reason"),
    _seen("novacron_security_groups", "Security groups."),
    _seen("novacron_floating_addresses", "Floating addresses, by whether they lead to a VM.", "used"),
    _seen("novacron_forwards", "Ports that lead to VMs."),
    _seen("novacron_projects", "Projects."),
    _seen("novacron_project_image_bytes", "Size of a project's own images.", "project"),
    _seen("novacron_project_quota", "Limits of a project, in the quota's own units.", "project", "quota"),
    _seen("novacron_users", "Users, by kind.", "kind"),
    _seen("novacron_tokens", "API tokens and sessions, by kind.", "kind"),
    _seen("novacron_project_vms", "VMs of a project.", "project"),
    _seen("novacron_project_vcpus", "vCPUs of a project's VMs.", "project"),
    _seen("novacron_project_memory_bytes", "Memory of a project's VMs.", "project"),
    _gauge(
        "novacron_active_tokens", "Tokens and sessions that were used in the last 15 minutes.", together=Together.MAX
    ),
    _gauge(
        "novacron_key_created_timestamp_seconds",
        "When the generation in use of one of the platform's keys was created.",
        "key",
        together=Together.MAX,
    ),
    _gauge(
        "novacron_key_age_max_seconds",
        "How old a key may become (server --key-age-days); 0: as old as it likes.",
        together=Together.MAX,
    ),
    _gauge(
        "novacron_key_rotation_start_timestamp_seconds",
        "When the rotation of a key began that is not finished; 0: it is not being rotated.",
        "key",
        together=Together.MAX,
    ),
    _gauge(
        "novacron_certificate_expiry_timestamp_seconds",
        "When a certificate ends: of the authority, server, API or node, or of a database on its machine and its etcd.",
        "certificate",
        together=Together.MAX,
    ),
)
PROCESS = (
    _gauge("novacron_build_info", "1; the version that runs.", "version", "python", together=Together.MAX),
    _gauge("novacron_processes", "Processes of this server."),
    _gauge("novacron_process_resident_memory_bytes", "Memory of this server's processes."),
    _counter("novacron_process_cpu_seconds_total", "Processor time of this server's processes."),
    _gauge("novacron_process_open_fds", "Open files and connections of this server's processes."),
    _gauge("novacron_process_start_timestamp_seconds", "When this server's last process started.",
           together=Together.MAX),
    _histogram("novacron_loop_lag_seconds", "By how much what was due came late in a process' loop.",
               buckets=QUERIES_S),
    _counter("novacron_work_restarts_total", "How often long-running work failed and was begun again, or a task failed,"
             " by what it does.", "work"),
    _counter("novacron_gc_collections_total", "Collections of cycles, by generation.", "generation"),
    _counter("novacron_traces_spans_total", "Spans: sent, failed to be sent, or dropped because too many waited.",
             "outcome"),
    _counter("novacron_logs_lines_total", "Lines of the log: written, dropped because too many waited, or lost because"
             " nobody reads.", "outcome"),
    _counter("novacron_metrics_dropped_labels_total", "Values that were counted under other labels, because a metric"
             " had too many.", "metric"),
)  # fmt: skip

FORECASTS = (
    _counter("novacron_load_reports_dropped_total", "Reports of load that did not count: a node reports too often, or"
             " there are too many VMs."),
    _histogram("novacron_load_history_store_duration_seconds", "Storing an hour of load.", buckets=DURATIONS_S),
    _counter("novacron_forecast_rounds_total", "Rounds of forecasts, by how they ended: done, failed or timeout.",
             "outcome"),
    _gauge("novacron_forecast_round_duration_seconds", "How long the last round took, fits included.",
           together=Together.MAX),
    _gauge("novacron_forecast_last_round_timestamp_seconds", "When the last round was made.", together=Together.MAX),
    _gauge("novacron_forecast_error_ratio", "Weighted absolute error of the last week's forecasts: all errors together"
           " as a share of what came. answer: served, learned, or last (as in the last hour or week).",
           "kind", "answer", together=Together.MAX),
    _gauge("novacron_forecast_coverage_ratio", "Share of what came in the last week that was inside its 90 % interval.",
           "kind", together=Together.MAX),
    _gauge("novacron_forecast_lead_seconds", "How long before the end of what it foresees a forecast was there, on"
           " average over the last week.", "kind", together=Together.MAX),
    _gauge("novacron_forecast_scored", "Forecasts of the last week that were compared with actual values.", "kind",
           together=Together.MAX),
    _gauge("novacron_forecast_unusual_vms", "VMs that use more or less CPU than they usually do at this time of the"
           " day, since two hours or longer.", together=Together.MAX),
    _gauge("novacron_forecast_model_aside", "1 while a learned model is not in use: it is worse than the naive answer.",
           "kind", together=Together.MAX),
)  # fmt: skip
AGENT = (
    _gauge("novacron_agent_link_connected", "1 while the agent is connected to a server."),
    _counter("novacron_agent_link_connections_total", "Connections to a server, by how the attempt ended.", "outcome"),
    _counter("novacron_agent_messages_total", "Messages of the server, by type.", "type"),
    _counter_of("novacron_agent_skipped_messages_total", "Messages of the server, or parts of them, that were skipped:"
                " not understood (undecodable), or met a defect (defect).", "reason", "undecodable", "defect"),
    _gauge("novacron_agent_lease_remaining_seconds", "For how long highly available VMs may still run without the"
           " control plane."),
    _gauge("novacron_agent_workers", "VMs of which the agent has anything."),
    _counter("novacron_agent_steps_total", "Steps of the VMs' workers, by how they ended.", "outcome"),
    _histogram("novacron_agent_step_duration_seconds", "A worker's step.", buckets=STEPS_S),
    _counter("novacron_agent_actions_total", "What was done to VMs (start, kill, and so on), by how it ended: done,"
             " failed, or cancelled.", "action",
             "outcome"),
    _histogram("novacron_agent_action_duration_seconds", "From the beginning of an action to its end.", "action",
               buckets=STEPS_S),
    _counter("novacron_agent_questions_total", "Questions of the server, by how they ended.", "question", "outcome"),
    _counter("novacron_qmp_commands_total", "Commands to QEMUs, by how they ended.", "command", "outcome"),
    _histogram("novacron_qmp_command_duration_seconds", "From a command to QEMU to its answer.", buckets=STEPS_S),
    Family(
        "novacron_dwcp_sessions_total", MetricKind.COUNTER, "Sessions between nodes, by this one's role and how they"
        " ended: done, failed, or cancelled.", ("role", "outcome"),
        known=tuple(itertools.product(("sender", "receiver"), ("done", "failed", "cancelled"))),
    ),
    _counter("novacron_dwcp_sent_bytes_total", "What DWCP has put on links."),
    _counter("novacron_dwcp_received_bytes_total", "What DWCP has taken from links."),
    _counter("novacron_dwcp_connections_opened_total", "Connections that were opened, needed or in advance."),
    _gauge("novacron_dwcp_connections_waiting", "Connections that are open and wait for a session."),
    _gauge("novacron_dwcp_connections_reused", "How often a session took a connection that waited."),
    _gauge("novacron_dwcp_page_store_bytes", "Disk space that pages take which VMs left behind."),
    _gauge("novacron_dwcp_page_store_bytes_max", "Disk space that such pages may take."),
    _gauge("novacron_agent_images", "Images that the node holds."),
    _counter("novacron_agent_refused_vxlan_packets_total", "VXLAN packets of a network that came from where no node has"
             " that network, and were dropped.", "network"),
)  # fmt: skip
HOST = (
    _gauge("novacron_host_cpus", "Processors."),
    _counter("novacron_host_cpu_seconds_total", "Processor time, by mode (proc_stat(5)).", "mode"),
    _gauge("novacron_host_load1", "Load average of a minute."),
    _gauge("novacron_host_memory_bytes", "The memory that it has."),
    _gauge("novacron_host_memory_available_bytes", "Memory that could be had without swapping."),
    _counter("novacron_host_pressure_seconds_total", "For how long something has waited for a resource (PSI, some).",
             "resource"),
    _gauge("novacron_host_filesystem_bytes", "Size of the file system that a directory of the agent's is on.", "place"),
    _gauge("novacron_host_filesystem_free_bytes", "Room on it.", "place"),
    _counter("novacron_host_network_receive_bytes_total", "Bytes that came in.", "interface"),
    _counter("novacron_host_network_transmit_bytes_total", "Bytes that went out.", "interface"),
    _counter("novacron_host_network_drops_total", "Packets that were dropped.", "interface"),
    _gauge("novacron_host_boot_timestamp_seconds", "When the host was started."),
)  # fmt: skip
OF_A_VM = ("vm", "name", "project")
VM = (
    _gauge("novacron_vm_running", "1 while there is a QEMU.", *OF_A_VM),
    _gauge("novacron_vm_vcpus", "vCPUs that the guest has.", *OF_A_VM),
    _counter("novacron_vm_cpu_seconds_total", "Processor time of its QEMU.", *OF_A_VM),
    _counter("novacron_vm_cpu_throttled_seconds_total", "For how long its QEMU was held back by its limit (cgroup).",
             *OF_A_VM),
    _gauge("novacron_vm_memory_bytes", "Memory that the guest has.", *OF_A_VM),
    _gauge("novacron_vm_memory_balloon_bytes", "Memory that its balloon leaves it.", *OF_A_VM),
    _gauge("novacron_vm_memory_available_bytes", "Memory that the guest could still use, as its balloon driver says.",
           *OF_A_VM),
    _gauge("novacron_vm_memory_resident_bytes", "Memory of the host that its QEMU has.", *OF_A_VM),
    _gauge("novacron_vm_memory_charged_bytes", "Memory that its cgroup is charged for, files that were read included.",
           *OF_A_VM),
    _gauge("novacron_vm_start_timestamp_seconds", "When its QEMU was started here.", *OF_A_VM),
    _counter("novacron_vm_disk_read_bytes_total", "Bytes that the guest read.", *OF_A_VM, "disk"),
    _counter("novacron_vm_disk_written_bytes_total", "Bytes that the guest wrote.", *OF_A_VM, "disk"),
    _counter("novacron_vm_disk_reads_total", "Reads of the guest.", *OF_A_VM, "disk"),
    _counter("novacron_vm_disk_writes_total", "Writes of the guest.", *OF_A_VM, "disk"),
    _counter("novacron_vm_disk_flushes_total", "Flushes of the guest.", *OF_A_VM, "disk"),
    _counter("novacron_vm_disk_seconds_total", "Time that reads, writes and flushes took, together.", *OF_A_VM, "disk",
             "operation"),
    _counter("novacron_vm_disk_errors_total", "Reads, writes and flushes that failed.", *OF_A_VM, "disk"),
    _gauge("novacron_vm_disk_allocated_bytes", "Disk space that the VM's own layers take.", *OF_A_VM),
    _counter("novacron_vm_network_receive_bytes_total", "Bytes that came to the guest.", *OF_A_VM, "interface"),
    _counter("novacron_vm_network_transmit_bytes_total", "Bytes that the guest sent.", *OF_A_VM, "interface"),
    _counter("novacron_vm_network_receive_packets_total", "Packets that came to the guest.", *OF_A_VM,
             "interface"),
    _counter("novacron_vm_network_transmit_packets_total", "Packets that the guest sent.", *OF_A_VM, "interface"),
    _counter("novacron_vm_network_drops_total", "Packets to or from the guest that were dropped.", *OF_A_VM,
             "interface"),
    _gauge("novacron_vm_guest_agent", "1 while a guest agent has its port open.", *OF_A_VM),
)  # fmt: skip

ROLLOUTS = (
    _gauge("novacron_rollout_running", "1 while a rollout has not ended.", together=Together.MAX),
    _gauge("novacron_rollout_state", "1 for the state of the newest rollout: running, paused, going-back, done,"
           " rolled-back or failed.", "state", together=Together.MAX),
    _gauge("novacron_rollout_number", "Number of the newest rollout.", together=Together.MAX),
    _gauge("novacron_rollout_progress_timestamp_seconds", "When the process that works on it last gave a sign of life.",
           together=Together.MAX),
    _gauge("novacron_rollout_ended_timestamp_seconds", "When it ended, by how; 0: it has not ended so.", "state",
           together=Together.MAX),
    _gauge("novacron_rollout_went_back_seconds", "From the decision to go back until the old version had all requests;"
           " 0: it has not gone back.", together=Together.MAX),
)  # fmt: skip
"""In a file of ``novacron rollout start --textfile``, not at a server's ``/metrics``."""

SERVERS = (*API, *FEED, *DATABASE, *CONTROLLERS, *AUDIT, *LINK, *MIGRATIONS, *FLEET, *FORECASTS, *PROCESS)
AGENTS = (*AGENT, *HOST, *VM)
FAMILIES = (*SERVERS, *AGENTS, *ROLLOUTS)
BY_NAME = {family.name: family for family in FAMILIES}
