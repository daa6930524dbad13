"""The VM dashboard: resource use, actions and failures."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import board, graph, number, rate, row, variable

VMS = 'project=~"$project", name=~"$name"'


def vms() -> Dashboard:
    def disk(name: str) -> str:
        return rate(f"novacron_vm_disk_{name}_total", "name", VMS)

    def net(name: str) -> str:
        return rate(f"novacron_vm_network_{name}_total", "name", VMS)

    failed = rate("novacron_agent_actions_total", where='outcome="failed"')
    return (
        board(
            "novacron-vms",
            "VM lifecycle",
            "What VMs use, actions on them, and failures.",
            variable("project", "Project", "novacron_vm_running"),
            variable("name", "VM", "novacron_vm_running"),
        )
        .with_panel(number("Running", "none", 'max(novacron_vms{state="running"})'))
        .with_panel(number("Failed", "none", 'max(novacron_vms{state="failed"}) or vector(0)', warn=1, bad=5))
        .with_panel(number("Unplaced", "none", "max(novacron_vms_unplaced)", warn=1))
        .with_panel(number("Crashes in total", "none", "max(novacron_vm_crashes)", warn=1))
        .with_panel(number("Highly available", "none", "max(novacron_vms_highly_available)"))
        .with_panel(
            number(
                "Failed actions",
                "percentunit",
                f"({failed} or vector(0)) / ({rate('novacron_agent_actions_total')} > 0) or vector(0)",
                warn=0.01,
                bad=0.1,
            )
        )
        .with_row(row("Resource use"))
        .with_panel(graph("Processors", "none", {"{{name}}": rate("novacron_vm_cpu_seconds_total", "name", VMS)}))
        .with_panel(
            graph(
                "Memory",
                "bytes",
                {
                    "{{name}} has": f"sum by (name) (novacron_vm_memory_bytes{{{VMS}}})",
                    "{{name}} balloon": f"sum by (name) (novacron_vm_memory_balloon_bytes{{{VMS}}})",
                    "{{name}} resident on the host": f"sum by (name) (novacron_vm_memory_resident_bytes{{{VMS}}})",
                },
            )
        )
        .with_panel(
            graph(
                "Guest agents",
                "none",
                {"answer": f"sum(novacron_vm_guest_agent{{{VMS}}})", "of": f"sum(novacron_vm_running{{{VMS}}})"},
            )
        )
        .with_panel(
            graph(
                "Disks: bytes", "Bps", {"{{name}} read": disk("read_bytes"), "{{name}} written": disk("written_bytes")}
            )
        )
        .with_panel(
            graph(
                "Disks: operations",
                "iops",
                {
                    "{{name}} reads": disk("reads"),
                    "{{name}} writes": disk("writes"),
                    "{{name}} flushes": disk("flushes"),
                },
            )
        )
        .with_panel(
            graph(
                "Disks: busy time",
                "percentunit",
                {"{{name}} {{operation}}": rate("novacron_vm_disk_seconds_total", "name, operation", VMS)},
            )
        )
        .with_panel(graph("Disks: errors", "ops", {"{{name}}": disk("errors")}))
        .with_panel(
            graph(
                "Networks: bytes", "Bps", {"{{name}} in": net("receive_bytes"), "{{name}} out": net("transmit_bytes")}
            )
        )
        .with_panel(
            graph(
                "Networks: packets",
                "pps",
                {
                    "{{name}} in": net("receive_packets"),
                    "{{name}} out": net("transmit_packets"),
                    "{{name}} dropped": net("drops"),
                },
            )
        )
        .with_row(row("States and actions"))
        .with_panel(graph("States", "none", {"{{state}}": "max by (state) (novacron_vms)"}, stacked=True))
        .with_panel(
            graph("Actions", "ops", {"{{action}} {{outcome}}": rate("novacron_agent_actions_total", "action, outcome")})
        )
        .with_panel(
            graph(
                "Action duration",
                "s",
                {
                    "{{action}}": "histogram_quantile(0.95, sum by (le, action) (novacron_agent_action_duration_seconds_bucket))"
                },
                about="95th percentile. Each point links to its trace.",
                exemplars=True,
            )
        )
        .with_panel(
            graph(
                "Disk space of VMs", "bytes", {"{{name}}": f"sum by (name) (novacron_vm_disk_allocated_bytes{{{VMS}}})"}
            )
        )
        .with_panel(
            graph(
                "Projects",
                "none",
                {
                    "{{project}} VMs": 'max by (project) (novacron_project_vms{project=~"$project"})',
                    "{{project}} vCPUs": 'max by (project) (novacron_project_vcpus{project=~"$project"})',
                },
            )
        )
        .with_panel(
            graph(
                "Uptime",
                "s",
                {"{{name}}": f"time() - max by (name) (novacron_vm_start_timestamp_seconds{{{VMS}}})"},
            )
        )
    )
