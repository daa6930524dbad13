"""What was used of nodes and VMs, what was foreseen of that, and how it came."""

from __future__ import annotations

from alembic import op

revision = "0051"
down_revision = "0050"

NODE_DAYS = """
CREATE TABLE node_load_days (
    node       text      NOT NULL REFERENCES nodes (name) ON UPDATE CASCADE ON DELETE CASCADE,
    day        date      NOT NULL,
    peak       real[]    NOT NULL,
    mean       real[]    NOT NULL,
    last       real[]    NOT NULL,
    quarter    real[]    NOT NULL,
    second     real[]    NOT NULL,
    memory_mib integer[] NOT NULL,
    PRIMARY KEY (node, day)
)
"""
# Room for some of a day's 24 changes of a row where it is: those need neither the index nor a vacuum.
VM_DAYS = """
CREATE TABLE vm_load_days (
    vm            text       NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    day           date       NOT NULL,
    peak_percent  smallint   NOT NULL,
    hours         smallint   NOT NULL,
    peaks_percent smallint[] NOT NULL,
    means_percent smallint[] NOT NULL,
    PRIMARY KEY (vm, day)
) WITH (fillfactor = 70)
"""
NODE_FORECASTS = """
CREATE TABLE node_forecasts (
    node       text        NOT NULL REFERENCES nodes (name) ON UPDATE CASCADE ON DELETE CASCADE,
    hour       timestamptz NOT NULL,
    model      text        NOT NULL,
    peak       real        NOT NULL,
    lower      real,
    upper      real,
    last       real        NOT NULL,
    learned    real,
    memory_mib integer,
    known_hours integer    NOT NULL,
    made_at    timestamptz NOT NULL DEFAULT now(),
    came       real,
    PRIMARY KEY (node, hour)
)
"""
VM_FORECASTS = """
CREATE TABLE vm_forecasts (
    vm      text        NOT NULL REFERENCES vms (id) ON DELETE CASCADE,
    day     date        NOT NULL,
    model   text        NOT NULL,
    peak    real        NOT NULL,
    lower   real,
    upper   real,
    last    real        NOT NULL,
    learned real,
    known_days integer  NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now(),
    came    real,
    PRIMARY KEY (vm, day)
)
"""
SCORES = """
CREATE TABLE forecast_scores (
    kind          text             NOT NULL,
    at            timestamptz      NOT NULL,
    count         integer          NOT NULL,
    came          double precision NOT NULL,
    error         double precision NOT NULL,
    last_error    double precision NOT NULL,
    learned_count integer          NOT NULL,
    learned_came  double precision NOT NULL,
    learned_error double precision NOT NULL,
    learned_last_error double precision NOT NULL,
    intervals     integer          NOT NULL,
    inside        integer          NOT NULL,
    lead_s        double precision NOT NULL,
    PRIMARY KEY (kind, at)
)
"""
CAPACITY_DAYS = """
CREATE TABLE capacity_days (
    resource text             NOT NULL,
    name     text             NOT NULL,
    day      date             NOT NULL,
    used     double precision NOT NULL,
    size     double precision,
    PRIMARY KEY (resource, name, day)
)
"""


def upgrade() -> None:
    for table in (NODE_DAYS, VM_DAYS, NODE_FORECASTS, VM_FORECASTS, SCORES, CAPACITY_DAYS):
        op.execute(table)
    for table in ("node_load_days", "vm_load_days", "vm_forecasts", "capacity_days"):
        op.execute(f"CREATE INDEX {table}_day ON {table} USING brin (day)")
    op.execute("CREATE INDEX node_forecasts_hour ON node_forecasts (hour)")
    op.execute(
        "CREATE TABLE forecast_models (kind text PRIMARY KEY, aside_since timestamptz, reason text NOT NULL DEFAULT '')"
    )
    op.execute(
        "CREATE TABLE forecast_rounds (hour timestamptz PRIMARY KEY, made_at timestamptz NOT NULL DEFAULT now(),"
        " took_s real NOT NULL, nodes integer NOT NULL, vms integer NOT NULL)"
    )
    op.execute(
        "CREATE TABLE capacity_forecasts (resource text, name text, forecast jsonb NOT NULL,"
        " PRIMARY KEY (resource, name))"
    )
