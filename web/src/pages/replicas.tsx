/** Replicas of VMs: copies of their disks on other sites, that follow what the guests write. */
import { Label, type LabelProps } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { Link } from "wouter";
import { answered, client, type Me, type Replica } from "../api";
import { When } from "../components/labels";
import { LiveList } from "../components/live_list";
import { given, number, type Operation, OperationBar, type Values } from "../components/operation";
import type { Column } from "../components/table";
import { bytes, time } from "../format";
import { m, t } from "../i18n";
import { useList } from "../list";
import { refusalFor } from "../session";
import { Plans } from "./plans";

type State = "current" | "deleting" | "first copy" | "late";
const COLOURS: Record<State, NonNullable<LabelProps["color"]>> = { current: "green", deleting: "blue", "first copy": "blue", late: "red" };
const STATES: Record<State, string> = { current: m("current"), deleting: m("deleting"), "first copy": m("first copy"), late: m("late") };

export function stateOf(replica: Replica, now: number): State {
  if (replica.phase === "deleting") return "deleting";
  if (replica.late_at != null && Date.parse(replica.late_at) <= now) return "late";
  return replica.points.length === 0 ? "first copy" : "current";
}

function newest(replica: Replica): Replica["points"][number] | undefined {
  return replica.points[replica.points.length - 1];
}

function pointsOf(replica: Replica): string {
  const points = replica.points.map((point) => `${point.number}: ${time(point.at)}, ${bytes(point.sent_bytes)}`);
  return (replica.round_reason ? [...points, `${replica.round_kind}: ${replica.round_reason}`] : points).join("\n");
}

function points(v: Values): { rpo_s: number | undefined; points: number | undefined } {
  return { rpo_s: number(v["rpo_s"]), points: number(v["points"]) };
}

function ofReplica(me: Me, replica: Replica): Operation[] {
  const at = { params: { path: { ref: replica.id } } };
  const subject = `${replica.vm_name} ${replica.id}`;
  const refusal = refusalFor(me, "write", replica.project);
  const none = replica.points.length === 0 ? m("It has no point yet.") : null;
  return [
    {
      label: m("Try"),
      subject,
      refusal: refusal ?? none,
      warning: m("A VM is made of it, connected to nothing. The replica goes on following. Delete the VM afterwards."),
      fields: [{ name: "name", label: m("Name of the new VM") }],
      command: (v) => `novacron replica try ${replica.id} ${v["name"]}`,
      run: (v) => answered(client.POST("/api/v1/replicas/{ref}/actions/try", { ...at, body: { name: v["name"] ?? "" } })),
    },
    {
      label: m("Fail over"),
      subject,
      refusal: refusalFor(me, "operate", replica.project) ?? none,
      warning: m("The VM goes on from the newest point. What it wrote after that is lost. Its node must be gone."),
      confirm: replica.vm_name,
      undo: false,
      fields: [{ name: "confirm", label: m("Name of its node, whose host is off"), optional: true, help: m("Needed unless a fence command has cut it off.") }],
      command: (v) => `novacron vm failover ${replica.vm_name} --replica ${replica.id}${given(v["confirm"]) ? ` --confirm ${v["confirm"]}` : ""}`,
      run: (v) => answered(client.POST("/api/v1/vms/{ref}/actions/failover", { params: { path: { ref: replica.vm } }, body: { replica: replica.id, confirm: given(v["confirm"]) } })),
    },
    {
      label: m("Change"),
      subject,
      refusal,
      fields: [
        { name: "rpo_s", label: m("Seconds between rounds"), kind: "number", value: String(replica.rpo_s) },
        { name: "points", label: m("Points that are kept"), kind: "number", value: String(replica.points_kept) },
      ],
      command: (v) => `novacron replica set ${replica.id} --rpo ${v["rpo_s"]}s --points ${v["points"]}`,
      run: (v) => answered(client.PATCH("/api/v1/replicas/{ref}", { params: { ...at.params, header: { "If-Match": `"${replica.revision}"` } }, body: points(v) })),
    },
    {
      label: m("Delete"),
      subject,
      refusal: refusal ?? (replica.phase === "deleting" ? m("It is being deleted.") : null),
      warning: m("The VM can't go on from it any more."),
      command: () => `novacron replica delete ${replica.id}`,
      run: () => answered(client.DELETE("/api/v1/replicas/{ref}", at)),
    },
  ];
}

export function Replicas({ me }: { me: Me }): ReactElement {
  const list = useList("replica", {}, (query) => answered(client.GET("/api/v1/replicas", { params: { query } })));
  const columns: readonly Column<Replica>[] = [
    { title: m("VM"), width: "minmax(7rem, 1fr)", cell: (replica) => <Link href={`/vms/${replica.vm}`}>{replica.vm_name}</Link>, text: (replica) => replica.vm_name },
    { title: m("Site"), width: "minmax(6rem, 1fr)", cell: (replica) => <span title={t("on node {node}", { node: replica.node })}>{replica.site}</span>, text: (replica) => replica.site },
    { title: m("State"), width: "8rem", cell: (replica) => <StateLabel replica={replica} />, text: (replica) => stateOf(replica, Date.now()) },
    { title: m("Newest point"), width: "12rem", cell: (replica) => <Newest replica={replica} />, text: (replica) => newest(replica)?.at ?? "" },
    { title: m("Every"), width: "6rem", cell: (replica) => t("{count} s", { count: replica.rpo_s }), text: (replica) => String(replica.rpo_s) },
    { title: m("Used"), width: "6rem", cell: (replica) => bytes(replica.used_bytes), text: (replica) => String(replica.used_bytes) },
    { title: m("Error"), width: "minmax(6rem, 2fr)", cell: (replica) => <span title={replica.error}>{replica.error}</span>, text: (replica) => replica.error },
    { title: "", width: "22rem", cell: (replica) => <OperationBar operations={ofReplica(me, replica)} /> },
  ];
  const create: Operation = {
    label: m("Replicate a VM"),
    refusal: refusalFor(me, "write", me.project),
    warning: m("Its disk is copied to another site, and follows there in rounds."),
    fields: [
      { name: "vm", label: m("VM") },
      { name: "site", label: m("Site") },
      { name: "rpo_s", label: m("Seconds between rounds"), kind: "number", value: "30" },
      { name: "points", label: m("Points that are kept"), kind: "number", value: "3" },
    ],
    command: (v) => `novacron vm replicate ${v["vm"]} --to-site ${v["site"]} --rpo ${v["rpo_s"]}s --points ${v["points"]}`,
    run: (v) => answered(client.POST("/api/v1/vms/{ref}/actions/replicate", { params: { path: { ref: v["vm"] ?? "" } }, body: { site: v["site"] ?? "", ...points(v) } })),
  };
  return (
    <div className="nc-page">
      <LiveList kind="replica" title={m("Replicas")} list={list} columns={columns} empty={m("No VM is replicated to another site.")} create={create} />
      <Plans me={me} />
    </div>
  );
}

function Newest({ replica }: { replica: Replica }): ReactElement {
  const point = newest(replica);
  if (point === undefined) return <>-</>;
  return (
    <span title={pointsOf(replica)}>
      <When at={point.at} />
    </span>
  );
}

function StateLabel({ replica }: { replica: Replica }): ReactElement {
  const state = stateOf(replica, Date.now());
  return <Label color={COLOURS[state]}>{t(STATES[state])}</Label>;
}
