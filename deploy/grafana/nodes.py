"""The node dashboard: availability, capacity and agents, by site."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import board, graph, list_of, quantile, rate, row, variable

NODES = 'node=~"$node"'


def _of_leader(gauge: str, by: str) -> str:
    """Return the expression of what the server that makes forecasts says: one that did before may have old values."""
    return f'max by ({by}) ({gauge} and on (instance) novacron_controller_leading{{controller="forecasts"}} == 1)'


def nodes() -> Dashboard:
    return (
        board(
            "novacron-nodes",
            "nodes and sites",
            "Nodes by site: availability, capacity and agents.",
            variable("site", "Site", "novacron_node_ready"),
            variable("node", "Node", "novacron_node_ready"),
        )
        .with_panel(
            list_of(
                "Ready",
                "none",
                {"": 'max by (site, node) (novacron_node_ready{site=~"$site", node=~"$node"})'},
                width=8,
            )
        )
        .with_panel(graph("VMs", "none", {"{{node}}": f"max by (node) (novacron_node_vms{{{NODES}}})"}, stacked=True))
        .with_panel(
            graph(
                "Sites",
                "none",
                {"{{site}} ready": 'sum by (site) (max by (site, node) (novacron_node_ready{site=~"$site"}))'},
            )
        )
        .with_row(row("Capacity and use"))
        .with_panel(
            graph(
                "CPU used",
                "percentunit",
                {
                    "{{node}}": f'sum by (node) (rate(novacron_host_cpu_seconds_total{{mode!~"idle|iowait", {NODES}}}[$__rate_interval]))'
                    f" / sum by (node) (novacron_host_cpus{{{NODES}}})"
                },
                most=1,
            )
        )
        .with_panel(graph("Load", "none", {"{{node}}": f"max by (node) (novacron_host_load1{{{NODES}}})"}))
        .with_panel(
            graph(
                "Memory used",
                "percentunit",
                {
                    "{{node}}": f"1 - novacron_host_memory_available_bytes{{{NODES}}} / novacron_host_memory_bytes{{{NODES}}}"
                },
                most=1,
            )
        )
        .with_panel(
            graph(
                "Memory allocated",
                "percentunit",
                {
                    "{{node}}": f"max by (node) (novacron_node_memory_allocated_bytes{{{NODES}}}) / max by (node) (novacron_node_memory_bytes{{{NODES}}})"
                },
            )
        )
        .with_panel(
            graph(
                "vCPUs allocated per CPU",
                "none",
                {
                    "{{node}}": f"max by (node) (novacron_node_vcpus_allocated{{{NODES}}}) / max by (node) (novacron_node_cpus{{{NODES}}})"
                },
            )
        )
        .with_panel(
            graph(
                "Pressure",
                "percentunit",
                {"{{node}} {{resource}}": rate("novacron_host_pressure_seconds_total", "node, resource", NODES)},
                about="Share of time in which a task waits for the resource (PSI).",
            )
        )
        .with_panel(
            graph(
                "Disk space used",
                "percentunit",
                {
                    "{{node}} {{place}}": f"1 - novacron_host_filesystem_free_bytes{{{NODES}}} / novacron_host_filesystem_bytes{{{NODES}}}"
                },
                most=1,
            )
        )
        .with_panel(
            graph(
                "Network",
                "Bps",
                {
                    "{{node}} in": rate("novacron_host_network_receive_bytes_total", "node", NODES),
                    "{{node}} out": rate("novacron_host_network_transmit_bytes_total", "node", NODES),
                },
            )
        )
        .with_panel(
            graph("Packets dropped", "pps", {"{{node}}": rate("novacron_host_network_drops_total", "node", NODES)})
        )
        .with_row(row("Agents"))
        .with_panel(graph("Link", "none", {"{{node}}": f"max by (node) (novacron_agent_link_connected{{{NODES}}})"}))
        .with_panel(
            graph(
                "Lease remaining",
                "s",
                {"{{node}}": f"max by (node) (novacron_agent_lease_remaining_seconds{{{NODES}}})"},
            )
        )
        .with_panel(
            graph("Clock skew", "s", {"{{node}}": f"max by (node) (abs(novacron_node_clock_skew_seconds{{{NODES}}}))"})
        )
        .with_panel(
            graph(
                "Worker steps",
                "ops",
                {"{{node}} {{outcome}}": rate("novacron_agent_steps_total", "node, outcome", NODES)},
            )
        )
        .with_panel(
            graph(
                "QMP commands",
                "ops",
                {
                    "{{command}} {{outcome}}": "topk(10, "
                    + rate("novacron_qmp_commands_total", "command, outcome", NODES)
                    + ")"
                },
            )
        )
        .with_panel(
            graph(
                "QMP response time, p95",
                "s",
                {"{{node}}": quantile(0.95, "novacron_qmp_command_duration_seconds", "node", NODES)},
            )
        )
        .with_panel(
            graph("Agent messages", "ops", {"{{type}}": rate("novacron_link_messages_total", "type")}, stacked=True)
        )
        .with_panel(
            graph(
                "Heartbeats and observations",
                "ops",
                {
                    "heartbeats {{outcome}}": rate("novacron_link_heartbeats_total", "outcome"),
                    "reports {{outcome}}": rate("novacron_link_reports_total", "outcome"),
                },
            )
        )
        .with_panel(
            graph(
                "Questions to agents",
                "s",
                {"{{question}}": quantile(0.95, "novacron_link_question_duration_seconds", "question")},
                about="Response time, 95th percentile.",
            )
        )
        .with_row(row("Forecasts, compared with what came"))
        .with_panel(
            graph(
                "Error",
                "percentunit",
                {"{{kind}} {{answer}}": _of_leader("novacron_forecast_error_ratio", "kind, answer")},
                about="Weighted absolute error over a week; last: as in the last hour or week.",
            )
        )
        .with_panel(
            graph(
                "Inside the 90 % interval",
                "percentunit",
                {"{{kind}}": _of_leader("novacron_forecast_coverage_ratio", "kind")},
                most=1,
            )
        )
        .with_panel(graph("Lead", "s", {"{{kind}}": _of_leader("novacron_forecast_lead_seconds", "kind")}))
        .with_panel(
            graph(
                "Models set aside",
                "none",
                {"{{kind}}": _of_leader("novacron_forecast_model_aside", "kind")},
                about="1: the learned model is worse than the naive answer.",
                width=12,
            )
        )
        .with_panel(
            graph(
                "Rounds of forecasts",
                "none",
                {"{{outcome}}": "sum by (outcome) (increase(novacron_forecast_rounds_total[1d])) or vector(0)"},
                about="In a day.",
                width=12,
            )
        )
    )
