"""All faults of alerts, and the alerts that no fault of the lab makes fire yet, each with the reason."""

from __future__ import annotations

from lab.alert_faults import control_plane, nodes, upkeep

ALL = (*control_plane.ALL, *nodes.ALL, *upkeep.ALL)
FAULTS = {alert: fault for fault in ALL for alert in fault.alerts}

_LATER = "its fault is not injected yet"
_ONE_KERNEL = "hosts of the lab share one kernel: the fault would be this machine's own"
_ARCHIVED = f"{_LATER}: takes a platform whose database is archived; drills restore such a one"
_GUEST = f"{_LATER}: takes a guest that does what is wrong"
_LINK = f"{_LATER}: takes an agent that says what no release says"
_ROLLOUTS = f"{_LATER}: takes HAProxy and two servers; rollouts that fail are tested there, without this alert"
_RECOVERED = f"{_LATER}: a database that is older than its nodes is tested without Prometheus"
_BACKUPS = f"{_LATER}: takes backups of guests that fail or wait for hours"
WITHOUT_FAULT = {
    "APIOverloaded": f"{_LATER}: takes 400 requests in progress",
    "AuditRecordsLost": f"{_LATER}: takes 10,000 records that wait",
    "FollowersCutOff": f"{_LATER}: takes followers that do not read",
    "TransactionsOvertaken": f"{_LATER}: takes clients that write the same rows",
    "BackupFails": _ARCHIVED,
    "BackupTooOld": _ARCHIVED,
    "DatabaseArchivingStopped": _ARCHIVED,
    "BaseBackupTooOld": _ARCHIVED,
    "NetworkHindered": f"{_LATER}: the reasons of networks are tested without Prometheus",
    "NodeMemoryShort": _ONE_KERNEL,
    "NodeOverlayAttacked": f"{_LATER}: the attacks are tested without Prometheus",
    "NodeMessagesSkipped": _LINK,
    "AgentMessagesSkipped": _LINK,
    "AgentSilent": f"{_LATER}: takes an agent that is connected and does not answer; one that ends is NodeDown",
    "HostMemoryLow": _ONE_KERNEL,
    "HostUnderPressure": _ONE_KERNEL,
    "HostNetworkDrops": _ONE_KERNEL,
    "VMBackupLate": _BACKUPS,
    "VMBackupUnverified": _BACKUPS,
    "VMBackupProofFailed": _BACKUPS,
    "BackupRepositoryNotPruned": _BACKUPS,
    "VMReplicaLate": f"{_LATER}: takes a link that carries less than the guest writes",
    "VMsUnreconciled": _RECOVERED,
    "DatabaseOlderThanNodes": _RECOVERED,
    "VMDiskErrors": _GUEST,
    "VMHeldBack": _GUEST,
    "VMMemoryLow": _GUEST,
    "AgentActionsFail": f"{_LATER}: takes a VM that can't be started",
    "DwcpSessionsFail": f"{_LATER}: takes a session that breaks while it moves a VM",
    "LongDowntime": _GUEST,
    "PageStoresDamaged": f"{_LATER}: damaged page stores are tested without Prometheus",
    "ServerMemoryHigh": f"{_LATER}: takes 4 GB of this machine's memory",
    "WorkRestarts": f"{_LATER}: takes a defect of background work",
    "MetricsLabelsDropped": f"{_LATER}: takes a metric with thousands of labels",
    "CertificateExpires": f"{_LATER}: takes a server that can't renew its certificate; a node's is a drill",
    "RolloutStuck": _ROLLOUTS,
    "RolloutRolledBack": _ROLLOUTS,
}
"""Why no fault of the lab makes an alert fire."""
