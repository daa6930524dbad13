"""Panels, variables, and what all dashboards have in common."""

from __future__ import annotations

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.common import StackingMode as Stacking
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

TAG = "novacron"
REFRESH = "10s"
WIDTH, GRAPH_HEIGHT, NUMBER_HEIGHT = 24, 8, 4
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
RATE = "$__rate_interval"
DEPLOYED = "changes(max by (instance) (novacron_process_start_timestamp_seconds)[1m:10s]) > 0"
MIGRATED = "sum by (outcome) (increase(novacron_migrations_total[30s])) > 0"

Queries = dict[str, str]
"""Expressions, by what their legends say: text in which ``{{label}}`` stands for a label's value."""


def _query(expression: str, legend: str, ref: str, *, exemplars: bool = False) -> prometheus.Dataquery:
    query = prometheus.Dataquery().datasource(SOURCE).expr(expression).legend_format(legend).ref_id(ref).range()
    return query.exemplar(True) if exemplars else query


def _refs(queries: Queries) -> list[tuple[str, str, str]]:
    return [(chr(ord("A") + place), legend, expression) for place, (legend, expression) in enumerate(queries.items())]


def graph(
    title: str, unit: str, queries: Queries, *, about: str = "", width: int = 8, stacked: bool = False,
    exemplars: bool = False, most: float | None = None,
) -> timeseries.Panel:  # fmt: skip
    """Return lines over time. ``unit``: Grafana's name for it."""
    legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
    panel = (
        timeseries.Panel().title(title).description(about).datasource(SOURCE).unit(unit).min(0)
        .span(width).height(GRAPH_HEIGHT).fill_opacity(20 if stacked else 5).show_points(VisibilityMode.NEVER)
        .legend(legend.show_legend(True)).tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )  # fmt: skip
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(Stacking.NORMAL))
    if most is not None:
        panel = panel.max(most)
    for ref, name, expression in _refs(queries):
        panel = panel.with_target(_query(expression, name, ref, exemplars=exemplars))
    return panel


def number(
    title: str, unit: str, expression: str, *, about: str = "", width: int = 4, warn: float | None = None,
    bad: float | None = None, low: bool = False,
) -> stat.Panel:  # fmt: skip
    """Return one figure. From ``warn`` on it is yellow, from ``bad`` on red; ``low``: below them instead."""
    steps = [Threshold(value=None, color="red" if low and bad is not None else "green")]
    if low:
        steps += [Threshold(value=bad, color="yellow")] if bad is not None else []
        steps += [Threshold(value=warn, color="green")] if warn is not None else []
    else:
        steps += [Threshold(value=warn, color="yellow")] if warn is not None else []
        steps += [Threshold(value=bad, color="red")] if bad is not None else []
    return (
        stat.Panel().title(title).description(about).datasource(SOURCE).unit(unit).span(width).height(NUMBER_HEIGHT)
        .graph_mode(BigValueGraphMode.AREA)
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
        .with_target(_query(expression, "", "A"))
    )  # fmt: skip


def list_of(title: str, unit: str, queries: Queries, *, about: str = "", width: int = 12) -> table.Panel:
    """Return a table of what is now, a row for each set of labels."""
    panel = table.Panel().title(title).description(about).datasource(SOURCE).unit(unit).span(width).height(GRAPH_HEIGHT)
    for ref, name, expression in _refs(queries):
        query = _query(expression, name, ref).instant().format(PromQueryFormat.TABLE)
        panel = panel.with_target(query)
    return panel


def variable(name: str, label: str, metric: str) -> dashboard.QueryVariable:
    """Return a choice of a label's values; all of them unless some are chosen."""
    return (
        dashboard.QueryVariable(name).label(label).datasource(SOURCE).query(f"label_values({metric}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED).sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True).include_all(True).all_value(".*")
    )  # fmt: skip


def board(uid: str, title: str, about: str, *variables: dashboard.QueryVariable) -> dashboard.Dashboard:
    """Return a dashboard that has what all have: refresh, links to the others, marks of deployments and migrations."""
    board_ = (
        dashboard.Dashboard(f"NovaCron: {title}").uid(uid).description(about).tags([TAG]).refresh(REFRESH)
        .time("now-1h", "now").timezone("browser").editable().tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .link(
            dashboard.DashboardLink("NovaCron").type(DashboardLinkType.DASHBOARDS).tags([TAG]).as_dropdown(True)
            .include_vars(True).keep_time(True)
        )
        .annotation(_mark("Deployments", DEPLOYED, "blue"))
        .annotation(_mark("Migrations", MIGRATED, "purple"))
    )  # fmt: skip
    for choice in variables:
        board_ = board_.with_variable(choice)
    return board_


def _mark(name: str, expression: str, color: str) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(True).icon_color(color).expr(expression)
    )  # fmt: skip


def row(title: str) -> dashboard.Row:
    return dashboard.Row(title)


def quantile(q: float, histogram: str, by: str = "", where: str = "") -> str:
    """Return the expression of a quantile of a histogram."""
    labels = f"le, {by}" if by else "le"
    chosen = f"{{{where}}}" if where else ""
    return f"histogram_quantile({q}, sum by ({labels}) (rate({histogram}_bucket{chosen}[{RATE}])))"


def rate(counter: str, by: str = "", where: str = "") -> str:
    """Return the expression of how fast a counter grows."""
    chosen = f"{{{where}}}" if where else ""
    return f"sum{f' by ({by})' if by else ''} (rate({counter}{chosen}[{RATE}]))"
