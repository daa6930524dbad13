"""The system overview: is all well, and if not, which dashboard tells more."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.grafana.panels import board, graph, list_of, number, quantile, rate, row

SERVER = 'job="novacron-server"'


def overview() -> Dashboard:
    return (
        board("novacron-overview", "system overview", "Is all well? If not, which dashboard tells more?")
        .with_panel(number("Servers up", "none", f"sum(up{{{SERVER}}})", warn=1, bad=1, low=True))
        .with_panel(
            number(
                "Nodes that are not ready",
                "none",
                "count(max by (node) (novacron_node_ready) == 0) or vector(0)",
                bad=1,
            )
        )
        .with_panel(number("VMs that run", "none", 'max(novacron_vms{state="running"})'))
        .with_panel(
            number("Alerts that fire", "none", 'count(ALERTS{alertstate="firing"}) or vector(0)', warn=1, bad=5)
        )
        .with_panel(number("Requests that fail", "percentunit", "novacron:api_errors:ratio5m", warn=0.001, bad=0.01))
        .with_panel(number("Migrations under way", "none", "sum(max by (phase) (novacron_migrations_active))"))
        .with_row(row("People and programs"))
        .with_panel(
            graph("Requests", "reqps", {"{{status}}": rate("novacron_api_requests_total", "status")}, stacked=True)
        )
        .with_panel(
            graph(
                "Time to an answer",
                "s",
                {
                    "half": quantile(0.5, "novacron_api_request_duration_seconds"),
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
        .with_row(row("Machines"))
        .with_panel(graph("VMs", "none", {"{{state}}": "max by (state) (novacron_vms)"}, stacked=True))
        .with_panel(
            graph(
                "Processors used",
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
        .with_row(row("The control plane"))
        .with_panel(
            graph(
                "Controllers that are led",
                "none",
                {"{{controller}}": "sum by (controller) (novacron_controller_leading)"},
            )
        )
        .with_panel(
            graph(
                "Controllers' steps",
                "s",
                {"{{controller}}": quantile(0.95, "novacron_controller_step_duration_seconds", "controller")},
                about="95 % take no longer.",
            )
        )
        .with_panel(
            graph(
                "Memory of processes",
                "bytes",
                {"{{job}} {{instance}}": "sum by (job, instance) (novacron_process_resident_memory_bytes)"},
            )
        )
        .with_panel(
            graph(
                "Processor time of processes",
                "percentunit",
                {"{{job}} {{instance}}": rate("novacron_process_cpu_seconds_total", "job, instance")},
            )
        )
        .with_panel(
            graph(
                "How late the loops are",
                "s",
                {"{{instance}}": quantile(0.99, "novacron_loop_lag_seconds", "instance")},
                about="99 % are no later.",
            )
        )
        .with_panel(
            graph(
                "Spans and lines of logs",
                "ops",
                {
                    "spans {{outcome}}": rate("novacron_traces_spans_total", "outcome"),
                    "lines {{outcome}}": rate("novacron_logs_lines_total", "outcome"),
                },
                about="What is dropped, failed or lost cannot be seen elsewhere.",
            )
        )
        .with_panel(
            list_of(
                "Certificates end in",
                "s",
                {"": "min by (instance, certificate) (novacron_certificate_expiry_timestamp_seconds) - time()"},
            )
        )
        .with_panel(list_of("Versions", "none", {"": "count by (version, python, job) (novacron_build_info)"}))
    )
