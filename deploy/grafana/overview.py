"""The overview dashboard: is everything healthy, and which dashboard has the details."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import board, graph, list_of, number, quantile, rate, row

SERVER = 'job="novacron-server"'


def overview() -> Dashboard:
    return (
        board("novacron-overview", "system overview", "Is everything healthy? If not, which dashboard has the details?")
        .with_panel(number("Servers up", "none", f"sum(up{{{SERVER}}})", warn=1, bad=1, low=True))
        .with_panel(
            number(
                "Nodes not ready",
                "none",
                "count(max by (node) (novacron_node_ready) == 0) or vector(0)",
                bad=1,
            )
        )
        .with_panel(number("VMs running", "none", 'max(novacron_vms{state="running"})'))
        .with_panel(number("Firing alerts", "none", 'count(ALERTS{alertstate="firing"}) or vector(0)', warn=1, bad=5))
        .with_panel(number("Error rate", "percentunit", "novacron:api_errors:ratio5m", warn=0.001, bad=0.01))
        .with_panel(number("Active migrations", "none", "sum(max by (phase) (novacron_migrations_active))"))
        .with_row(row("API use"))
        .with_panel(
            graph("Requests", "reqps", {"{{status}}": rate("novacron_api_requests_total", "status")}, stacked=True)
        )
        .with_panel(
            graph(
                "Response time",
                "s",
                {
                    "p50": quantile(0.5, "novacron_api_request_duration_seconds"),
                    "95 %": quantile(0.95, "novacron_api_request_duration_seconds"),
                    "99 %": quantile(0.99, "novacron_api_request_duration_seconds"),
                },
                exemplars=True,
            )
        )
        .with_panel(
            graph(
                "Tokens in use",
                "none",
                {"tokens and sessions": "max(novacron_active_tokens)"},
                about="Used in the last 15 minutes.",
            )
        )
        .with_row(row("VMs and nodes"))
        .with_panel(graph("VMs", "none", {"{{state}}": "max by (state) (novacron_vms)"}, stacked=True))
        .with_panel(
            graph(
                "CPU used",
                "percentunit",
                {
                    "{{node}}": 'sum by (node) (rate(novacron_host_cpu_seconds_total{mode!~"idle|iowait"}[$__rate_interval]))'
                    " / sum by (node) (novacron_host_cpus)",
                },
                most=1,
            )
        )
        .with_panel(
            graph(
                "Memory used",
                "percentunit",
                {"{{node}}": "1 - novacron_host_memory_available_bytes / novacron_host_memory_bytes"},
                most=1,
            )
        )
        .with_row(row("Control plane"))
        .with_panel(
            graph(
                "Controllers with a leader",
                "none",
                {"{{controller}}": "sum by (controller) (novacron_controller_leading)"},
            )
        )
        .with_panel(
            graph(
                "Controller step time",
                "s",
                {"{{controller}}": quantile(0.95, "novacron_controller_step_duration_seconds", "controller")},
                about="95th percentile.",
            )
        )
        .with_panel(
            graph(
                "Process memory",
                "bytes",
                {"{{job}} {{instance}}": "sum by (job, instance) (novacron_process_resident_memory_bytes)"},
            )
        )
        .with_panel(
            graph(
                "Process CPU time",
                "percentunit",
                {"{{job}} {{instance}}": rate("novacron_process_cpu_seconds_total", "job, instance")},
            )
        )
        .with_panel(
            graph(
                "Event loop lag",
                "s",
                {"{{instance}}": quantile(0.99, "novacron_loop_lag_seconds", "instance")},
                about="99th percentile.",
            )
        )
        .with_panel(
            graph(
                "Spans and log lines",
                "ops",
                {
                    "spans {{outcome}}": rate("novacron_traces_spans_total", "outcome"),
                    "lines {{outcome}}": rate("novacron_logs_lines_total", "outcome"),
                },
                about="Dropped, failed or lost ones are visible only here.",
            )
        )
        .with_panel(
            list_of(
                "Time to certificate expiry",
                "s",
                {"": "min by (instance, certificate) (novacron_certificate_expiry_timestamp_seconds) - time()"},
            )
        )
        .with_panel(list_of("Versions", "none", {"": "count by (version, python, job) (novacron_build_info)"}))
    )
