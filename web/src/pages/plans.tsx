/** Recovery plans: VMs that go on from their replicas, in order. */
import { Label, type LabelProps } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { answered, client, type Me, type Plan } from "../api";
import { When } from "../components/labels";
import { LiveList } from "../components/live_list";
import { lines, type Operation, OperationBar } from "../components/operation";
import type { Column } from "../components/table";
import { m, t } from "../i18n";
import { useList } from "../list";
import { refusalFor } from "../session";

type Run = Plan["runs"][number];
type State = "failed" | "never" | "under way" | "well";
const COLOURS: Record<State, NonNullable<LabelProps["color"]>> = { failed: "red", never: "grey", "under way": "blue", well: "green" };
const STATES: Record<State, string> = { failed: m("failed"), never: m("never run"), "under way": m("under way"), well: m("well") };

export function stateOf(run: Run | undefined): State {
  if (run === undefined) return "never";
  if (run.ended_at == null) return "under way";
  return run.steps.every((step) => step.phase === "ready") ? "well" : "failed";
}

function reportOf(run: Run | undefined): string {
  return (run?.steps ?? []).map((step) => [step.vm_name, step.phase, step.took_s == null ? "" : `${step.took_s} s`, step.error].filter((word) => word !== "").join(", ")).join("\n");
}

function ofPlan(me: Me, plan: Plan): Operation[] {
  const at = { params: { path: { ref: plan.id } } };
  const subject = plan.name;
  const refusal = refusalFor(me, "write", plan.project);
  const runs = stateOf(plan.runs[0]) === "under way";
  const busy = runs ? m("A run is under way.") : null;
  return [
    {
      label: m("Test"),
      subject,
      refusal: refusal ?? busy,
      warning: m("VMs are made of all replicas, connected to nothing, and deleted at the end."),
      command: () => `novacron plan test ${plan.name}`,
      run: () => answered(client.POST("/api/v1/plans/{ref}/actions/test", at)),
    },
    {
      label: m("Fail over"),
      subject,
      refusal: refusalFor(me, "operate", plan.project) ?? busy,
      warning: m("All its VMs go on from the newest points. What they wrote after that is lost. Their nodes must be gone."),
      confirm: plan.name,
      undo: false,
      fields: [{ name: "confirm", label: m("Names of the nodes whose hosts are off"), optional: true, help: m("With commas between them. Needed unless a fence command has cut them off.") }],
      command: (v) => `novacron plan failover ${plan.name}${lines(v["confirm"]).map((node) => ` --confirm ${node}`).join("")}`,
      run: (v) => answered(client.POST("/api/v1/plans/{ref}/actions/failover", { ...at, body: { confirm: lines(v["confirm"]) } })),
    },
    {
      label: m("Switch"),
      subject,
      refusal: refusalFor(me, "operate", plan.project) ?? busy,
      warning: m("All its VMs move to where their replicas are. Running ones go on running, and nothing is lost."),
      command: () => `novacron plan switch ${plan.name}`,
      run: () => answered(client.POST("/api/v1/plans/{ref}/actions/switch", at)),
    },
    {
      label: m("Fail back"),
      subject,
      refusal: refusalFor(me, "operate", plan.project) ?? busy,
      warning: m("All its VMs move back to where they were before the last failover or switch. Nothing is lost."),
      command: () => `novacron plan failback ${plan.name}`,
      run: () => answered(client.POST("/api/v1/plans/{ref}/actions/failback", at)),
    },
    {
      label: m("Stop"),
      subject,
      refusal: refusal ?? (runs ? null : m("No run is under way.")),
      warning: m("VMs that have not begun do not begin."),
      command: () => `novacron plan stop ${plan.name}`,
      run: () => answered(client.POST("/api/v1/plans/{ref}/actions/stop", at)),
    },
    {
      label: m("Delete"),
      subject,
      refusal: refusal ?? busy,
      warning: m("Its reports go with it. Its VMs and their replicas stay."),
      command: () => `novacron plan delete ${plan.name}`,
      run: () => answered(client.DELETE("/api/v1/plans/{ref}", at)),
    },
  ];
}

export function Plans({ me }: { me: Me }): ReactElement {
  const list = useList("plan", {}, (query) => answered(client.GET("/api/v1/plans", { params: { query } })));
  const columns: readonly Column<Plan>[] = [
    { title: m("Name"), width: "minmax(7rem, 1fr)", cell: (plan) => plan.name },
    { title: m("VMs"), width: "5rem", cell: (plan) => String(plan.vms.length) },
    { title: m("Last run"), width: "9rem", cell: (plan) => <RunLabel run={plan.runs[0]} />, text: (plan) => stateOf(plan.runs[0]) },
    { title: m("Begun"), width: "12rem", cell: (plan) => (plan.runs[0] === undefined ? "-" : <When at={plan.runs[0].began_at} />), text: (plan) => plan.runs[0]?.began_at ?? "" },
    { title: "", width: "30rem", cell: (plan) => <OperationBar operations={ofPlan(me, plan)} /> },
  ];
  const create: Operation = {
    label: m("Create a plan"),
    refusal: refusalFor(me, "write", me.project),
    fields: [
      { name: "name", label: m("Name"), help: m("Lower-case letters, digits and hyphens.") },
      { name: "vms", label: m("VMs, in the order in which they go on"), help: m("Names or ids, with commas between them.") },
    ],
    command: (v) => `novacron plan create ${v["name"]}${lines(v["vms"]).map((vm) => ` --vm ${vm}`).join("")}`,
    run: (v) => answered(client.POST("/api/v1/plans", { body: { name: v["name"] ?? "", vms: lines(v["vms"]).map((vm) => ({ vm, delay_s: 0, wait_for: "running" as const, timeout_s: 600 })) } })),
  };
  return <LiveList kind="plan" title={m("Recovery plans")} list={list} columns={columns} empty={m("There is no recovery plan.")} create={create} level="h2" />;
}

function RunLabel({ run }: { run: Run | undefined }): ReactElement {
  const state = stateOf(run);
  return (
    <Label color={COLOURS[state]} title={reportOf(run)}>
      {t(STATES[state])}
    </Label>
  );
}
