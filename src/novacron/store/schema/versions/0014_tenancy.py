"""Projects and what they may have, users and their roles, tokens that end, and what was done by whom."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"

OWNED = ("vms", "volumes", "networks", "security_groups", "floating_addresses", "forwards", "snapshots", "exports",
         "migrations")  # fmt: skip
"""Tables whose rows are a project's."""
PARTLY_OWNED = ("events", "imports")
"""Tables of which some rows are the fleet's."""

STATEMENTS = """
CREATE TABLE projects (
    id           text        PRIMARY KEY,
    name         text        NOT NULL UNIQUE,
    description  text        NOT NULL DEFAULT '',
    quota        jsonb       NOT NULL DEFAULT '{}',
    host_network boolean     NOT NULL DEFAULT false,
    revision     bigint      NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now()
);
-- What a project has, kept by triggers; its row is locked from the first change of a transaction to its end.
CREATE TABLE project_usage (
    project    text   PRIMARY KEY REFERENCES projects (name) ON UPDATE CASCADE ON DELETE CASCADE,
    vms        bigint NOT NULL DEFAULT 0,
    vcpus      bigint NOT NULL DEFAULT 0,
    memory_mib bigint NOT NULL DEFAULT 0,
    disk_mib   bigint NOT NULL DEFAULT 0,
    snapshots  bigint NOT NULL DEFAULT 0,
    networks   bigint NOT NULL DEFAULT 0
);
CREATE FUNCTION nova_begin_usage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO project_usage (project) VALUES (NEW.name);
    RETURN NULL;
END $$;
CREATE TRIGGER usage AFTER INSERT ON projects FOR EACH ROW EXECUTE FUNCTION nova_begin_usage();

CREATE TABLE users (
    id         text        PRIMARY KEY,
    name       text        NOT NULL UNIQUE,
    kind       text        NOT NULL,
    project    text        REFERENCES projects (name) ON UPDATE CASCADE ON DELETE CASCADE,
    issuer     text,
    subject    text,
    disabled   boolean     NOT NULL DEFAULT false,
    revision   bigint      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (issuer, subject),
    CHECK ((issuer IS NULL) = (subject IS NULL))
);
-- Apart from the users, and in no feed.
CREATE TABLE passwords (
    user_id    text        PRIMARY KEY REFERENCES users ON DELETE CASCADE,
    hash       text        NOT NULL,
    set_at     timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE grants (
    id         text        PRIMARY KEY,
    "user"     text        NOT NULL REFERENCES users ON DELETE CASCADE,
    user_name  text        NOT NULL,
    project    text        REFERENCES projects (name) ON UPDATE CASCADE ON DELETE CASCADE,
    role       text        NOT NULL,
    revision   bigint      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT ("user", project)
);
CREATE INDEX grants_project ON grants (project);

ALTER TABLE tokens
    ADD COLUMN kind text NOT NULL DEFAULT 'api',
    ADD COLUMN "user" text REFERENCES users ON DELETE CASCADE,
    ADD COLUMN user_name text,
    ADD COLUMN scopes jsonb,
    ADD COLUMN project text REFERENCES projects (name) ON UPDATE CASCADE ON DELETE CASCADE,
    ADD COLUMN expires_at timestamptz;
CREATE INDEX tokens_user ON tokens ("user");
CREATE INDEX tokens_expiry ON tokens (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE token_uses (
    token   text        PRIMARY KEY REFERENCES tokens ON DELETE CASCADE,
    used_at timestamptz NOT NULL,
    address text        NOT NULL
);

-- Every change, and every refusal. Rows are never changed, and removed only when they are old.
CREATE TABLE audit (
    id          bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor       text        NOT NULL,
    user_id     text,
    token       text,
    address     text        NOT NULL,
    method      text        NOT NULL,
    path        text        NOT NULL,
    action      text        NOT NULL,
    object      text,
    name        text,
    project     text,
    outcome     text        NOT NULL,
    status      int         NOT NULL,
    detail      text        NOT NULL DEFAULT '',
    request_id  text        NOT NULL
);
CREATE INDEX audit_at ON audit (at);
CREATE INDEX audit_actor ON audit (actor, id);
CREATE INDEX audit_object ON audit (object, id);
CREATE INDEX audit_name ON audit (name, id);
CREATE INDEX audit_project ON audit (project, id);
CREATE FUNCTION nova_audit_stays() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.at < now() - interval '90 days' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'what is in the audit log stays as it is for 90 days';
END $$;
CREATE TRIGGER stays BEFORE UPDATE OR DELETE ON audit FOR EACH ROW EXECUTE FUNCTION nova_audit_stays();
CREATE TRIGGER stays_whole BEFORE TRUNCATE ON audit FOR EACH STATEMENT EXECUTE FUNCTION nova_audit_stays();

CREATE TABLE api_log (
    at          timestamptz NOT NULL,
    request_id  text        NOT NULL,
    method      text        NOT NULL,
    route       text        NOT NULL,
    status      int         NOT NULL,
    duration_ms real        NOT NULL,
    user_name   text        NOT NULL,
    address     text        NOT NULL
);
CREATE INDEX api_log_at ON api_log (at);
CREATE INDEX api_log_user ON api_log (user_name, at);
CREATE INDEX api_log_route ON api_log (route, at);
CREATE INDEX api_log_errors ON api_log (at) WHERE status >= 400;

-- Images that are one project's; all others are everybody's.
CREATE TABLE image_owners (
    name       text        PRIMARY KEY,
    project    text        NOT NULL REFERENCES projects (name) ON UPDATE CASCADE,
    revision   bigint      NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE changes ADD COLUMN project text;
CREATE OR REPLACE FUNCTION nova_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND to_jsonb(OLD) ->> TG_ARGV[1] <> to_jsonb(NEW) ->> TG_ARGV[1]) THEN
        INSERT INTO changes (kind, key, project)
        VALUES (TG_ARGV[0], to_jsonb(OLD) ->> TG_ARGV[1], to_jsonb(OLD) ->> 'project');
    END IF;
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO changes (kind, key, body, project)
        VALUES (TG_ARGV[0], to_jsonb(NEW) ->> TG_ARGV[1], to_jsonb(NEW), to_jsonb(NEW) ->> 'project');
    END IF;
    PERFORM pg_notify('nova_feed', '');
    RETURN NULL;
END $$;

ALTER TABLE vms ADD COLUMN disk_mib bigint NOT NULL DEFAULT 0;
-- VMs that others' places depend on.
ALTER TABLE vms ADD COLUMN grouped boolean GENERATED ALWAYS AS (
    spec -> 'placement' ->> 'affinity' IS NOT NULL OR spec -> 'placement' ->> 'anti_affinity' IS NOT NULL
    OR spec -> 'placement' ->> 'spread' IS NOT NULL OR jsonb_array_length(coalesce(spec -> 'devices', '[]')) > 0
) STORED;
CREATE INDEX vms_grouped ON vms (node) WHERE grouped;
-- What is placed on each node, kept as project_usage is.
CREATE TABLE node_loads (
    node       text   PRIMARY KEY REFERENCES nodes ON UPDATE CASCADE ON DELETE CASCADE,
    vcpus      bigint NOT NULL DEFAULT 0,
    memory_mib bigint NOT NULL DEFAULT 0
);
CREATE FUNCTION nova_begin_load() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO node_loads (node) VALUES (NEW.name);
    RETURN NULL;
END $$;
CREATE TRIGGER load AFTER INSERT ON nodes FOR EACH ROW EXECUTE FUNCTION nova_begin_load();
INSERT INTO node_loads (node, vcpus, memory_mib)
SELECT n.name, coalesce(sum((v.spec ->> 'vcpus')::bigint), 0), coalesce(sum((v.spec ->> 'memory_mib')::bigint), 0)
FROM nodes n LEFT JOIN vms v ON v.node = n.name GROUP BY n.name;

-- What belongs to a VM is its project's.
CREATE FUNCTION nova_project_of_vm() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.project := (SELECT project FROM vms WHERE id = NEW.vm);
    RETURN NEW;
END $$;

-- An event is its object's project's, also when that has gone in the same transaction.
CREATE FUNCTION nova_project_of_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.project IS NULL THEN
        NEW.project := CASE NEW.kind
            WHEN 'vm' THEN (SELECT project FROM vms WHERE id = NEW.object)
            WHEN 'volume' THEN (SELECT project FROM volumes WHERE id = NEW.object)
            WHEN 'migration' THEN (SELECT project FROM migrations WHERE id = NEW.object)
            WHEN 'network' THEN (SELECT project FROM networks WHERE name = NEW.object)
            WHEN 'security-group' THEN (SELECT project FROM security_groups WHERE name = NEW.object)
            WHEN 'floating-address' THEN (SELECT project FROM floating_addresses WHERE address = NEW.object)
            WHEN 'import' THEN (SELECT project FROM imports WHERE id = NEW.object)
        END;
        IF NEW.project IS NULL AND NEW.kind IN ('vm', 'volume', 'migration', 'network', 'security-group',
                                                'floating-address') THEN
            NEW.project := (SELECT project FROM events WHERE object = NEW.object ORDER BY at DESC, id DESC LIMIT 1);
        END IF;
    END IF;
    RETURN NEW;
END $$;
"""

OF_VMS = ("snapshots", "exports", "migrations", "forwards")

USAGE = {
    "vms": {
        "vms": "1",
        "vcpus": "({0}.spec ->> 'vcpus')::bigint",
        "memory_mib": "({0}.spec ->> 'memory_mib')::bigint",
        "disk_mib": "{0}.disk_mib",
    },
    "volumes": {"disk_mib": "{0}.size_mib"},
    "snapshots": {"snapshots": "1"},
    "networks": {"networks": "1"},
}
"""What a row of each table counts for."""


def _split(text: str) -> list[str]:
    """Split at the semicolons that end a line outside a function's body."""
    found, current, inside = [], "", False
    for line in text.splitlines(keepends=True):
        current += line
        if line.count("$$") % 2:
            inside = not inside
        if not inside and line.rstrip().endswith(";"):
            found.append(current)
            current = ""
    return found


def _fed(table: str, kind: str, key: str) -> None:
    op.execute(
        f"CREATE TRIGGER revision BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION nova_set_revision()"
    )
    op.execute(
        f"CREATE TRIGGER change AFTER INSERT OR UPDATE OR DELETE ON {table}"
        f" FOR EACH ROW EXECUTE FUNCTION nova_change('{kind}', '{key}')"
    )


LOADS = {"vcpus": USAGE["vms"]["vcpus"], "memory_mib": USAGE["vms"]["memory_mib"]}


def _counted(table: str, counts: dict[str, str], by: str, into: str) -> None:
    """Keep sums over a table true, whoever writes it: once for each statement, however many rows that has."""
    columns = ", ".join(f"sum({value.format('r')}) AS {column}" for column, value in counts.items())
    apply = (
        f"UPDATE {into} u SET {{sets}} FROM (SELECT r.{by}, {{columns}} FROM {{rows}} r GROUP BY r.{by}) c"
        f" WHERE u.{by} = c.{by};"
    )

    def changed(sign: str, rows: str) -> str:
        sets = ", ".join(f"{column} = u.{column} {sign} c.{column}" for column in counts)
        return apply.format(sets=sets, columns=columns, rows=rows)

    moved = " OR ".join(
        [f"a.{by} IS DISTINCT FROM b.{by}", *(f"{v.format('a')} <> {v.format('b')}" for v in counts.values())]
    )
    for event, body in (
        ("insert", changed("+", "added")),
        ("delete", changed("-", "gone")),
        ("update",
         f"IF EXISTS (SELECT FROM gone a JOIN added b USING (id) WHERE {moved}) THEN"
         f" {changed('-', 'gone')} {changed('+', 'added')} END IF;"),
    ):  # fmt: skip
        if table == "networks":
            body = body.replace("USING (id)", "USING (name)")
        op.execute(
            f"CREATE FUNCTION nova_{into}_{table}_{event}() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN {body} RETURN NULL; END $$"
        )
        tables = {"insert": "NEW TABLE AS added", "delete": "OLD TABLE AS gone"}
        tables["update"] = f"{tables['delete']} {tables['insert']}"
        op.execute(
            f"CREATE TRIGGER {into}_{event} AFTER {event.upper()} ON {table} REFERENCING {tables[event]}"
            f" FOR EACH STATEMENT EXECUTE FUNCTION nova_{into}_{table}_{event}()"
        )


def upgrade() -> None:
    for statement in _split(STATEMENTS):
        op.execute(statement)
    for table, kind, key in (
        ("projects", "project", "name"),
        ("users", "user", "id"),
        ("grants", "grant", "id"),
        ("image_owners", "image-owner", "name"),
    ):
        _fed(table, kind, key)
    op.execute("INSERT INTO projects (id, name, description, host_network) VALUES ('default', 'default', '', true)")
    for table in OWNED:
        op.execute(
            f"ALTER TABLE {table} ADD COLUMN project text NOT NULL DEFAULT 'default'"
            f" REFERENCES projects (name) ON UPDATE CASCADE"
        )
        op.execute(f"ALTER TABLE {table} ALTER COLUMN project DROP DEFAULT")
        op.execute(f"CREATE INDEX {table}_project ON {table} (project)")
    op.execute("ALTER TABLE events ADD COLUMN project text")
    op.execute("CREATE INDEX events_project ON events (project, id)")
    for table in OF_VMS:
        op.execute(
            f"CREATE TRIGGER project BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION nova_project_of_vm()"
        )
    op.execute("CREATE TRIGGER project BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION nova_project_of_event()")
    op.execute("ALTER TABLE imports ADD COLUMN project text REFERENCES projects (name) ON UPDATE CASCADE")
    op.execute(
        "UPDATE events SET project = 'default' WHERE kind NOT IN ('node', 'link', 'token', 'rebalancing', 'import')"
    )
    for table, column in (("vms", "vms_name_key"), ("volumes", "volumes_name_key")):
        op.execute(f"ALTER TABLE {table} DROP CONSTRAINT {column}, ADD UNIQUE (project, name)")
    for table, counts in USAGE.items():
        _counted(table, counts, "project", "project_usage")
    _counted("vms", LOADS, "node", "node_loads")
    op.execute(
        "UPDATE project_usage SET vms = (SELECT count(*) FROM vms),"
        " vcpus = (SELECT coalesce(sum((spec ->> 'vcpus')::bigint), 0) FROM vms),"
        " memory_mib = (SELECT coalesce(sum((spec ->> 'memory_mib')::bigint), 0) FROM vms),"
        " disk_mib = (SELECT coalesce(sum(size_mib), 0) FROM volumes),"
        " snapshots = (SELECT count(*) FROM snapshots), networks = (SELECT count(*) FROM networks)"
    )
    op.execute(
        "INSERT INTO users (id, name, kind) SELECT 'user-administrator', 'administrator', 'person'"
        " WHERE EXISTS (SELECT FROM tokens)"
    )
    op.execute(
        'INSERT INTO grants (id, "user", user_name, role)'
        " SELECT 'grant-administrator', id, name, 'administrator' FROM users"
    )
    op.execute("UPDATE tokens SET \"user\" = 'user-administrator', user_name = 'administrator'")
    op.execute('ALTER TABLE tokens ALTER COLUMN "user" SET NOT NULL, ALTER COLUMN user_name SET NOT NULL')
