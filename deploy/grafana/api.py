"""The API dashboard: requests, response times, rejections and the watch cache."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import board, graph, number, quantile, rate, row, variable

SERVER = 'job="novacron-server"'
ROUTES = 'route=~"$route"'


def api() -> Dashboard:
    durations = "novacron_api_request_duration_seconds"
    return (
        board(
            "novacron-api",
            "API",
            "Requests, response times, rejections and the watch cache.",
            variable("route", "Route", "novacron_api_requests_total"),
        )
        .with_panel(number("Requests", "reqps", rate("novacron_api_requests_total")))
        .with_panel(number("Error rate", "percentunit", "novacron:api_errors:ratio5m", warn=0.001, bad=0.01))
        .with_panel(number("Response time, p95", "s", quantile(0.95, durations), warn=0.1, bad=0.5))
        .with_panel(
            number(
                "Answered from memory",
                "percentunit",
                f"{rate('novacron_api_cached_answers_total')} / {rate('novacron_api_requests_total')}",
            )
        )
        .with_panel(number("Read lag", "s", "max(novacron_feed_lag_seconds)", warn=1, bad=5))
        .with_panel(number("Event streams", "none", "sum(novacron_api_followers)"))
        .with_row(row("Requests"))
        .with_panel(
            graph(
                "By route",
                "reqps",
                {"{{method}} {{route}}": rate("novacron_api_requests_total", "method, route", ROUTES)},
                width=12,
            )
        )
        .with_panel(
            graph(
                "By status",
                "reqps",
                {"{{status}}": rate("novacron_api_requests_total", "status", ROUTES)},
                width=12,
                stacked=True,
            )
        )
        .with_panel(
            graph(
                "Response time",
                "s",
                {
                    "p50": quantile(0.5, durations, where=ROUTES),
                    "95 %": quantile(0.95, durations, where=ROUTES),
                    "99 %": quantile(0.99, durations, where=ROUTES),
                },
                width=12,
                exemplars=True,
                about="Each point is a request and links to its trace.",
            )
        )
        .with_panel(
            graph(
                "Slowest routes",
                "s",
                {"{{method}} {{route}}": "topk(8, " + quantile(0.95, durations, "method, route", ROUTES) + ")"},
                width=12,
            )
        )
        .with_row(row("Limits"))
        .with_panel(
            graph("In progress", "none", {"{{instance}}": "sum by (instance) (novacron_api_requests_in_progress)"})
        )
        .with_panel(
            graph("Rejected", "reqps", {"{{reason}}": f"{rate('novacron_api_refused_total', 'reason')} or vector(0)"})
        )
        .with_panel(
            graph("Audit and API log records lost", "ops", {"records": rate("novacron_api_records_lost_total")})
        )
        .with_row(row("Watch cache"))
        .with_panel(graph("Objects", "none", {"{{kind}}": "max by (kind) (novacron_cache_objects)"}))
        .with_panel(graph("Changes", "ops", {"{{kind}}": rate("novacron_feed_changes_total", "kind")}, stacked=True))
        .with_panel(
            graph(
                "Applying changes",
                "s",
                {
                    "95 % of batches": quantile(0.95, "novacron_feed_apply_duration_seconds"),
                    "lag {{instance}}": "max by (instance) (novacron_feed_lag_seconds)",
                },
            )
        )
        .with_panel(graph("Followers cut off", "ops", {"too slow": rate("novacron_api_followers_cut_total")}))
        .with_panel(graph("Feed lost", "ops", {"{{instance}}": rate("novacron_feed_losses_total", "instance")}))
        .with_panel(
            graph("Changes skipped", "ops", {"{{reason}}": rate("novacron_feed_skipped_changes_total", "reason")})
        )
        .with_panel(
            graph(
                "Garbage collections",
                "ops",
                {"generation {{generation}}": rate("novacron_gc_collections_total", "generation", SERVER)},
            )
        )
    )
