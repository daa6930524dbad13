"""The database dashboard: PostgreSQL as seen by servers and by itself; Redis."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import board, graph, number, quantile, rate, row


def database() -> Dashboard:
    queries = "novacron_database_query_duration_seconds"
    return (
        board("novacron-database", "database", "PostgreSQL as seen by servers and by itself; Redis.")
        .with_panel(
            number(
                "Connections used", "percentunit", "max(novacron:database_connections_used:ratio)", warn=0.7, bad=0.9
            )
        )
        .with_panel(number("Query time, p95", "s", quantile(0.95, queries), warn=0.05, bad=0.1))
        .with_panel(number("Queries", "ops", f"sum(rate({queries}_count[$__rate_interval]))"))
        .with_panel(number("Size", "bytes", "max(novacron_database_size_bytes)"))
        .with_panel(
            number("Oldest transaction", "s", "max(novacron_database_longest_transaction_seconds)", warn=15, bad=120)
        )
        .with_panel(number("Replicas", "none", "max(novacron_database_replicas)"))
        .with_row(row("Seen by servers"))
        .with_panel(
            graph(
                "Connections",
                "none",
                {
                    "{{state}} {{instance}}": "sum by (state, instance) (novacron_database_connections)",
                    "limit {{instance}}": "sum by (instance) (novacron_database_connections_max)",
                },
            )
        )
        .with_panel(
            graph(
                "Waiting for a connection",
                "s",
                {
                    "95 %": quantile(0.95, "novacron_database_acquire_duration_seconds"),
                    "99 %": quantile(0.99, "novacron_database_acquire_duration_seconds"),
                },
            )
        )
        .with_panel(
            graph(
                "Queries",
                "ops",
                {"{{operation}}": f"sum by (operation) (rate({queries}_count[$__rate_interval]))"},
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Query time",
                "s",
                {"{{operation}}": quantile(0.95, queries, "operation")},
                about="95th percentile.",
            )
        )
        .with_panel(
            graph(
                "Transactions",
                "ops",
                {"{{outcome}}": rate("novacron_database_transactions_total", "outcome")},
                stacked=True,
            )
        )
        .with_panel(
            graph("Unavailable", "ops", {"{{instance}}": rate("novacron_database_unavailable_total", "instance")})
        )
        .with_row(row("Seen by PostgreSQL and Redis"))
        .with_panel(
            graph(
                "Sessions",
                "none",
                {"sessions": "max(novacron_database_sessions)", "limit": "max(novacron_database_sessions_max)"},
            )
        )
        .with_panel(graph("Rows waiting for vacuum", "none", {"dead rows": "max(novacron_database_dead_rows)"}))
        .with_panel(
            graph(
                "Archiving",
                "none",
                {"on": "max(novacron_database_archiving)", "failures": "max(novacron_database_archive_failures)"},
                about="WAL segments sent to the backup.",
            )
        )
        .with_panel(
            graph(
                "Rows",
                "ops",
                {
                    "read": "sum(rate(pg_stat_database_tup_returned[$__rate_interval]))",
                    "written": "sum(rate(pg_stat_database_tup_inserted[$__rate_interval])) + "
                    "sum(rate(pg_stat_database_tup_updated[$__rate_interval]))",
                },
            )
        )
        .with_panel(
            graph(
                "Read from disk",
                "percentunit",
                {
                    "share of blocks": "sum(rate(pg_stat_database_blks_read[$__rate_interval])) / (sum(rate("
                    "pg_stat_database_blks_read[$__rate_interval])) + sum(rate("
                    "pg_stat_database_blks_hit[$__rate_interval])) > 0) or vector(0)"
                },
                most=1,
            )
        )
        .with_panel(graph("Redis", "none", {"up": "max(redis_up)", "clients": "max(redis_connected_clients)"}))
    )
