"""The dashboard of service level objectives and the remaining error budget."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import board, graph, list_of, number, row


def slo() -> Dashboard:
    return (
        board("novacron-slo", "service level objectives", "Service level objectives and the remaining error budget.")
        .with_panel(
            number(
                "Successful requests (99.9 %)",
                "percentunit",
                "novacron:slo_api:ratio30d",
                warn=0.999,
                bad=0.998,
                low=True,
                width=6,
            )
        )
        .with_panel(
            number(
                "Error budget remaining",
                "percentunit",
                "1 - (1 - novacron:slo_api:ratio30d) / 0.001",
                warn=0.25,
                bad=0.01,
                low=True,
                width=6,
            )
        )
        .with_panel(
            number(
                "Answered within 0.5 s (99 %)",
                "percentunit",
                "novacron:slo_latency:ratio30d",
                warn=0.99,
                bad=0.98,
                low=True,
                width=6,
            )
        )
        .with_panel(
            number(
                "Completed migrations (99 %)",
                "percentunit",
                "novacron:slo_migrations:ratio30d",
                warn=0.99,
                bad=0.97,
                low=True,
                width=6,
            )
        )
        .with_row(row("Burn rate (1 uses up the budget in 30 days)"))
        .with_panel(
            graph(
                "API",
                "none",
                {
                    "5 minutes": "novacron:api_errors:ratio5m / 0.001",
                    "30 minutes": "novacron:api_errors:ratio30m / 0.001",
                    "an hour": "novacron:api_errors:ratio1h / 0.001",
                    "6 hours": "novacron:api_errors:ratio6h / 0.001",
                },
                width=12,
                about="Alerts: 14.4 over an hour and five minutes, 6 over six hours and thirty minutes.",
            )
        )
        .with_panel(
            graph(
                "Answered within 0.5 s",
                "percentunit",
                {"5 minutes": "novacron:slo_latency:ratio5m", "30 days": "novacron:slo_latency:ratio30d"},
                width=12,
                most=1,
            )
        )
        .with_panel(
            graph(
                "Migrations with a downtime below 0.5 s",
                "percentunit",
                {
                    "of all migrations": 'sum(novacron_migration_downtime_seconds_bucket{le="0.5"})'
                    " / sum(novacron_migration_downtime_seconds_count)"
                },
                width=12,
                most=1,
            )
        )
        .with_panel(
            graph(
                "Ready nodes",
                "percentunit",
                {"of all": "avg(max by (node) (novacron_node_ready))"},
                width=12,
                most=1,
            )
        )
        .with_row(row("Drills and runbooks"))
        .with_panel(
            list_of(
                "Since the last run of each drill",
                "s",
                {"": "min by (drill) (novacron_drill_age_seconds)"},
                about="Overdue from 35 days on.",
            )
        )
        .with_panel(
            list_of(
                "Since each runbook was executed against its fault",
                "s",
                {"": "time() - (max by (runbook) (novacron_runbook_tested_timestamp_seconds) > 0)"},
                about="Those that were never executed are left out.",
            )
        )
        .with_panel(
            graph("Drills whose last run failed", "none", {"{{drill}}": "max by (drill) (novacron_drill_failed)"})
        )
        .with_panel(
            graph(
                "Time to recover, of drills",
                "s",
                {"{{drill}}": "max by (drill) (novacron_drill_recover_seconds)"},
                about="Of the last run (RTO).",
            )
        )
        .with_panel(
            graph(
                "Loss, of drills",
                "s",
                {"{{drill}}": "max by (drill) (novacron_drill_loss_seconds)"},
                about="How far back the last run lost changes (RPO).",
            )
        )
        .with_panel(
            list_of(
                "Time to detect, of runbooks",
                "s",
                {"": "max by (runbook, alert) (novacron_runbook_detect_seconds)"},
                about="When each was executed against its fault last, in the lab.",
            )
        )
        .with_panel(
            list_of(
                "Time to recover, of runbooks",
                "s",
                {"": "max by (runbook, alert) (novacron_runbook_recover_seconds)"},
                about="From when the fault was found until its runbook had ended.",
            )
        )
        .with_panel(
            list_of("Alerts", "none", {"": "sum by (alertname, alertstate, severity) (ALERTS) or vector(0)"}, width=24)
        )
    )
