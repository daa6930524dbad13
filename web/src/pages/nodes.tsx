/** The hosts that VMs run on. */
import { Label } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { hasTags } from "../address";
import { answered, client, type Drain, type Me, type Node, type Schemas, type UnreconciledVm } from "../api";
import { PastLoad } from "../charts/load";
import { BY_TAG, FilterBar, useFilters } from "../components/filters";
import { When } from "../components/labels";
import { LiveList } from "../components/live_list";
import { metadataFields, metadataOf } from "../components/metadata";
import { checked, type Field, given, lines, number, type Operation, OperationBar, type Values } from "../components/operation";
import { Secret } from "../components/secret";
import type { Column } from "../components/table";
import { duration, mib } from "../format";
import { m, t } from "../i18n";
import { LEVELS } from "../levels";
import { type List, useList, useWhole } from "../list";
import { may, refusalFor } from "../session";
import { movesBy, useSorting } from "../sorting";

export function useNodes(me: Me, filters: { tag?: string } = {}, sort = "name"): List {
  const moves = movesBy(sort);
  return useWhole(
    useList("node", { sort, ...filters }, (query) => answered(client.GET("/api/v1/nodes", { params: { query: { sort, ...filters, ...query } } })), {
      moves: (old, now) => moves(old, now) || old.name !== now.name || old.tags.join() !== now.tags.join(),
      belongs: (node) => hasTags(node.tags, filters.tag),
      allowed: may(me, "read", null),
    }),
  );
}

const POLICIES = Object.keys({ throttle: true, "post-copy": true, leave: true } satisfies Record<Schemas["DrainPolicy"], true>);

export function drainFields(): Field[] {
  return [
    { name: "policy", label: m("A guest that writes faster than the link sends"), options: POLICIES, help: m("throttle: is slowed down; post-copy: moves before its memory; leave: stays.") },
    { name: "time_limit_s", label: m("Seconds until the drain gives up"), kind: "number", optional: true },
  ];
}

export function drainOf(values: Values): Schemas["DrainNode"] {
  return { policy: values["policy"] as Schemas["DrainPolicy"], time_limit_s: number(values["time_limit_s"]) };
}

function ofNode(me: Me, node: Node): Operation[] {
  const at = { params: { path: { name: node.name } } };
  const subject = node.name;
  const refusal = refusalFor(me, "operate");
  const manages = refusalFor(me, "manage");
  const operations: Operation[] = node.spec.cordoned
    ? [
        {
          label: m("Uncordon"),
          subject,
          refusal,
          fields: [{ name: "bring_back", label: m("Bring back the VMs that the drain moved"), kind: "check" }],
          command: (v) => `novacron node uncordon ${node.name}${checked(v["bring_back"]) ? " --bring-back" : ""}`,
          run: (v) => answered(client.POST("/api/v1/nodes/{name}/actions/uncordon", { ...at, body: { bring_back: checked(v["bring_back"]) } })),
        },
      ]
    : [{ label: m("Cordon"), subject, refusal, command: () => `novacron node cordon ${node.name}`, run: () => answered(client.POST("/api/v1/nodes/{name}/actions/cordon", at)) }];
  if (!node.spec.accepted) {
    operations.unshift({ label: m("Accept"), subject, refusal: manages, warning: m("The host becomes a node of the platform, with the CPUs and memory that it reports."), command: () => `novacron node accept ${node.name}`, run: () => answered(client.POST("/api/v1/nodes/{name}/actions/accept", at)) });
  }
  return [
    ...operations,
    { label: m("Drain"), subject, refusal, fields: drainFields(), warning: m("Its VMs move to other nodes, and no new ones are placed on it."), command: (v) => `novacron node drain ${node.name} --policy ${v["policy"]}`, run: (v) => answered(client.POST("/api/v1/nodes/{name}/actions/drain", { ...at, body: drainOf(v) })) },
    changeNode(node, refusal),
    {
      label: m("Load"),
      subject,
      command: () => `novacron node load ${node.name} --days 60`,
      run: () => answered(client.GET("/api/v1/nodes/{name}/load", { params: { ...at.params, query: { days: 60 } } })),
      show: ({ items }: Schemas["PastLoad"]) => <PastLoad hours={items} empty={m("No hour of its load is known yet: one is, soon after it has ended.")} />,
    },
    { label: m("Rename"), subject, refusal: manages, fields: [{ name: "name", label: m("Name"), value: node.name }], command: (v) => `novacron node rename ${node.name} ${v["name"]}`, run: (v) => answered(client.POST("/api/v1/nodes/{name}/actions/rename", { ...at, body: { name: v["name"] ?? "" } })) },
    { label: m("Log level"), subject, refusal, fields: [{ name: "level", label: m("Level"), options: LEVELS, value: "info", help: m("Until the agent restarts.") }], command: (v) => `novacron log-level ${v["level"]} --node ${node.name}`, run: (v) => answered(client.PUT("/api/v1/nodes/{name}/log-level", { ...at, body: { level: v["level"] as Schemas["Level"] } })) },
    {
      label: m("Remove"),
      subject,
      refusal: manages,
      warning: m("The node leaves the platform. Without force it must be empty."),
      fields: [{ name: "force", label: m("It is gone for good: give up what was only on it"), kind: "check" }],
      confirm: node.name,
      command: (v) => `novacron node remove ${node.name}${checked(v["force"]) ? " --force" : ""}`,
      run: (v) => answered(client.DELETE("/api/v1/nodes/{name}", { params: { ...at.params, query: checked(v["force"]) ? { force: true, confirm: node.name } : {} } })),
    },
  ];
}

function changeNode(node: Node, refusal: string | null): Operation {
  const { spec } = node;
  return {
    label: m("Change"),
    subject: node.name,
    refusal,
    fields: [
      { name: "site", label: m("Site"), optional: true, value: spec.site },
      { name: "zone", label: m("Zone"), optional: true, value: spec.zone },
      { name: "labels", label: m("Labels"), kind: "lines", optional: true, value: Object.entries(spec.labels).map(([key, value]) => `${key}=${value}`).join("\n"), help: m("One key=value a line.") },
      { name: "vcpu_overcommit", label: m("Virtual CPUs per CPU"), value: String(spec.vcpu_overcommit) },
      { name: "memory_overcommit", label: m("Memory overcommit"), value: String(spec.memory_overcommit) },
      { name: "migration_rate_bytes_per_s", label: m("Limit of all migrations in bytes a second"), kind: "number", optional: true, value: String(spec.migration_rate_bytes_per_s ?? "") },
      { name: "migrations_at_once", label: m("Migrations at once"), kind: "number", optional: true, value: String(spec.migrations_at_once ?? "") },
      ...metadataFields(node),
    ],
    run: (v) =>
      answered(
        client.PATCH("/api/v1/nodes/{name}", {
          params: { path: { name: node.name } },
          body: {
            site: v["site"],
            zone: v["zone"],
            labels: Object.fromEntries(lines(v["labels"]).map((line) => [line.split("=")[0] ?? "", line.split("=").slice(1).join("=")])),
            vcpu_overcommit: Number(v["vcpu_overcommit"]),
            memory_overcommit: Number(v["memory_overcommit"]),
            migration_rate_bytes_per_s: number(v["migration_rate_bytes_per_s"]) ?? null,
            migrations_at_once: number(v["migrations_at_once"]) ?? null,
            ...metadataOf(v),
          },
        }),
      ),
  };
}

function joinToken(me: Me): Operation {
  return {
    label: m("Let a host join"),
    refusal: refusalFor(me, "join"),
    fields: [
      { name: "node", label: m("Name of the node") },
      { name: "accept", label: m("Accept it at once"), kind: "check" },
    ],
    command: (v) => `novacron node join-token ${v["node"]}${checked(v["accept"]) ? " --accept" : ""}`,
    run: (v) => answered(client.POST("/api/v1/nodes/join-tokens", { body: { node: v["node"] ?? "", accept: checked(v["accept"]) } })),
    show: ({ token }: Schemas["JoinToken"]) => <Secret>{token}</Secret>,
  };
}

export function NodeState({ node }: { node: Node }): ReactElement {
  if (!node.status.ready) return <Label color="red">{t("not ready")}</Label>;
  if (node.spec.draining) return <Label color="orange">{t("draining")}</Label>;
  if (node.spec.cordoned) return <Label color="yellow">{t("cordoned")}</Label>;
  return <Label color="green">{t("ready")}</Label>;
}

function columns(me: Me): readonly Column<Node>[] {
  return [
    { title: m("Name"), width: "minmax(10rem, 2fr)", sort: "name", cell: (node) => node.name },
    { title: m("State"), width: "8rem", sort: "status.ready", cell: (node) => <NodeState node={node} /> },
    { title: m("Why"), width: "minmax(9rem, 2fr)", cell: (node) => <span title={node.status.reason}>{node.status.reason}</span> },
    { title: m("Site"), width: "minmax(6rem, 1fr)", sort: "spec.site", cell: (node) => node.spec.site },
    { title: m("CPUs"), width: "5rem", sort: "status.inventory.cpus", cell: (node) => node.status.reported?.cpus ?? node.status.inventory?.cpus ?? "-" },
    { title: m("Memory"), width: "7rem", sort: "status.inventory.memory_mib", cell: (node) => mib(node.status.reported?.memory_mib ?? node.status.inventory?.memory_mib ?? 0) },
    { title: m("QEMU"), width: "6rem", cell: (node) => node.status.inventory?.qemu_version ?? "-" },
    { title: m("Runs with"), width: "6rem", cell: (node) => node.status.inventory?.accelerator.kind ?? "-" },
    { title: m("Zone"), width: "7rem", sort: "spec.zone", extra: true, cell: (node) => node.spec.zone || "-" },
    { title: m("Agent"), width: "7rem", extra: true, cell: (node) => node.status.inventory?.agent_version ?? "-" },
    { title: m("Kernel"), width: "minmax(9rem, 1fr)", extra: true, cell: (node) => node.status.inventory?.kernel ?? "-" },
    { title: m("Architecture"), width: "7rem", extra: true, cell: (node) => node.status.inventory?.architecture ?? "-" },
    { title: m("Addresses"), width: "minmax(9rem, 1fr)", extra: true, cell: (node) => node.status.inventory?.addresses?.join(", ") || "-" },
    { title: m("Clock"), width: "7rem", extra: true, cell: (node) => `${node.status.clock_skew_s.toFixed(2)} s` },
    { title: m("Tags"), width: "minmax(8rem, 1fr)", extra: true, cell: (node) => node.tags.join(", ") },
    { title: m("Description"), width: "minmax(9rem, 2fr)", extra: true, cell: (node) => <span title={node.description}>{node.description}</span>, text: (node) => node.description },
    { title: m("Joined"), width: "13rem", sort: "created_at", extra: true, cell: (node) => <When at={node.created_at} />, text: (node) => node.created_at },
    { title: "", width: "42rem", cell: (node) => <OperationBar operations={ofNode(me, node)} /> },
  ];
}

const FILTERS = [BY_TAG] as const;

export function Nodes({ me }: { me: Me }): ReactElement {
  const shown = columns(me);
  const sorting = useSorting("sort", "name", shown);
  return (
    <div className="nc-page">
      <LiveList kind="node" title={m("Nodes")} list={useNodes(me, useFilters(FILTERS), sorting.by)} columns={shown} sorting={sorting} empty={m("No host has joined yet.")} create={joinToken(me)}>
        <FilterBar title={m("Nodes")} filters={FILTERS} />
      </LiveList>
      <Drains />
      <Unreconciled me={me} />
    </div>
  );
}

function Drains(): ReactElement {
  const shown: readonly Column<Drain>[] = [
    { title: m("Node"), width: "minmax(8rem, 1fr)", sort: "node", cell: (drain) => drain.node },
    { title: m("Phase"), width: "7rem", sort: "phase", cell: (drain) => drain.phase },
    { title: m("Moved"), width: "7rem", cell: (drain) => `${drain.moved.length} / ${drain.total}` },
    { title: m("Stay"), width: "minmax(9rem, 2fr)", cell: (drain) => <span title={drain.stays.map((one) => `${one.vm_name}: ${one.why}`).join("\n")}>{drain.stays.map((one) => one.vm_name).join(", ") || "-"}</span> },
    { title: m("Left"), width: "7rem", cell: (drain) => (drain.estimate_s === null ? "-" : duration(drain.estimate_s)) },
    { title: m("By"), width: "minmax(6rem, 1fr)", sort: "actor", cell: (drain) => drain.actor },
    { title: m("Began"), width: "13rem", sort: "created_at", cell: (drain) => <When at={drain.created_at} />, text: (drain) => drain.created_at },
    { title: m("Why"), width: "minmax(8rem, 2fr)", cell: (drain) => <span title={drain.reason}>{drain.reason}</span>, text: (drain) => drain.reason },
  ];
  const sorting = useSorting("drain-sort", "-created_at", shown);
  const sort = sorting.by;
  const list = useList("drain", { sort }, (query) => answered(client.GET("/api/v1/drains", { params: { query: { sort, ...query } } })), { moves: movesBy(sort) });
  return <LiveList kind="drain" title={m("Drains")} list={list} sorting={sorting} columns={shown} empty={m("No node has been drained.")} level="h2" />;
}

function Unreconciled({ me }: { me: Me }): ReactElement | null {
  const list = useList("unreconciled-vm", {}, (query) => answered(client.GET("/api/v1/unreconciled-vms", { params: { query } })));
  if (list.keys.length === 0) return null;
  const refusal = refusalFor(me, "manage");
  const of = (one: UnreconciledVm): Operation[] => {
    const at = { params: { path: { ref: one.vm } } };
    return [
      {
        label: m("Adopt"),
        subject: one.vm_name,
        refusal,
        warning: m("The VM is taken into the database as its node knows it."),
        fields: [
          { name: "name", label: m("Name"), optional: true, value: one.vm_name },
          { name: "project", label: m("Project"), optional: true, value: one.project ?? "" },
        ],
        command: () => `novacron vm adopt ${one.vm}`,
        run: (v) => answered(client.POST("/api/v1/unreconciled-vms/{ref}/actions/adopt", { ...at, body: { node: one.node, name: given(v["name"]), project: given(v["project"]) } })),
      },
      {
        label: m("Forget"),
        subject: one.vm_name,
        refusal,
        warning: m("What nodes have of the VM ends, with its disk. Nobody can undo that."),
        confirm: one.vm_name,
        command: () => `novacron vm forget ${one.vm}`,
        run: () => answered(client.POST("/api/v1/unreconciled-vms/{ref}/actions/forget", { ...at, body: { confirm: one.vm_name } })),
      },
    ];
  };
  const shown: readonly Column<UnreconciledVm>[] = [
    { title: m("VM"), width: "minmax(8rem, 1fr)", cell: (one) => one.vm_name },
    { title: m("Node"), width: "minmax(8rem, 1fr)", cell: (one) => one.node },
    { title: m("Contradiction"), width: "8rem", cell: (one) => one.contradiction },
    { title: m("Why"), width: "minmax(12rem, 3fr)", cell: (one) => <span title={one.reason}>{one.reason}</span>, text: (one) => one.reason },
    { title: "", width: "11rem", cell: (one) => <OperationBar operations={of(one)} /> },
  ];
  return <LiveList kind="unreconciled-vm" title={m("VMs that nodes and the database disagree about")} list={list} columns={shown} empty="" level="h2" />;
}
