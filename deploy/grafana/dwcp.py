"""The migration dashboard: duration, downtime, links and savings."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import board, graph, number, rate, row


def dwcp() -> Dashboard:
    return (
        board("novacron-dwcp", "DWCP and migrations", "Migrations: duration, downtime, links and savings.")
        .with_panel(
            number(
                "Migrations per hour", "none", "sum(max by (kind, outcome) (increase(novacron_migrations_total[1h])))"
            )
        )
        .with_panel(
            number(
                "Completed",
                "percentunit",
                'sum(max by (kind) (novacron_migrations_total{outcome="completed"}))'
                " / sum(max by (kind, outcome) (novacron_migrations_total))",
                warn=0.99,
                bad=0.95,
                low=True,
            )
        )
        .with_panel(
            number(
                "Duration, p95",
                "s",
                "histogram_quantile(0.95, sum by (le) (novacron_migration_duration_seconds_bucket))",
            )
        )
        .with_panel(
            number(
                "Downtime, p95",
                "s",
                "histogram_quantile(0.95, sum by (le) (novacron_migration_downtime_seconds_bucket))",
                warn=0.5,
                bad=2,
            )
        )
        .with_panel(
            number(
                "Sent share of QEMU's stream",
                "percentunit",
                "max(novacron_dwcp_wire_bytes_total) / max(novacron_dwcp_stream_bytes_total)",
            )
        )
        .with_panel(number("Active", "none", "sum(max by (phase) (novacron_migrations_active))"))
        .with_row(row("Migrations"))
        .with_panel(
            graph(
                "Ended",
                "none",
                {"{{kind}} {{outcome}}": "max by (kind, outcome) (novacron_migrations_total)"},
                stacked=True,
            )
        )
        .with_panel(graph("Active", "none", {"{{phase}}": "max by (phase) (novacron_migrations_active)"}, stacked=True))
        .with_panel(
            graph(
                "Saved",
                "bytes",
                {"{{by}}": "max by (by) (novacron_dwcp_saved_bytes_total)"},
                stacked=True,
                about="Bytes that did not have to be sent, by reason.",
            )
        )
        .with_row(row("Links"))
        .with_panel(graph("Sent", "Bps", {"{{node}}": rate("novacron_dwcp_sent_bytes_total", "node")}, stacked=True))
        .with_panel(
            graph("Received", "Bps", {"{{node}}": rate("novacron_dwcp_received_bytes_total", "node")}, stacked=True)
        )
        .with_panel(
            graph(
                "Round trip",
                "s",
                {
                    "{{source}} to {{target}}": "max by (source, target) (novacron_dwcp_round_trip_seconds)",
                    "now": "max(novacron_dwcp_round_trip_seconds) or vector(0)",
                },
                about="As measured by TCP, including queues, of active migrations.",
            )
        )
        .with_panel(
            graph("Sessions", "ops", {"{{role}} {{outcome}}": rate("novacron_dwcp_sessions_total", "role, outcome")})
        )
        .with_panel(
            graph(
                "Retransmissions and repairs",
                "none",
                {
                    "segments": "max(novacron_dwcp_retransmits_total)",
                    "resumed sessions": "max(novacron_dwcp_resumed_sessions_total)",
                    "damaged pages": "max(novacron_dwcp_repaired_pages_total)",
                },
            )
        )
        .with_panel(
            graph(
                "Connections",
                "none",
                {
                    "{{node}} waiting": "sum by (node) (novacron_dwcp_connections_waiting)",
                    "{{node}} opened": "sum by (node) (novacron_dwcp_connections_opened_total)",
                },
            )
        )
        .with_row(row("Page stores"))
        .with_panel(
            graph(
                "Checkpoints of VMs that left",
                "bytes",
                {
                    "{{node}}": "sum by (node) (novacron_dwcp_page_store_bytes)",
                    "limit {{node}}": "sum by (node) (novacron_dwcp_page_store_bytes_max)",
                },
                width=12,
            )
        )
        .with_panel(
            graph(
                "Duration of agents' migration actions",
                "s",
                {
                    "{{action}}": "histogram_quantile(0.95, sum by (le, action) (novacron_agent_action_duration_seconds_bucket"
                    '{action=~"send|receive|pull|serve"}))'
                },
                width=12,
                about="95th percentile.",
            )
        )
    )
