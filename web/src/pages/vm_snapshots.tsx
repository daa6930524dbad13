/** A VM's snapshots as a tree; the one that the VM continues from is marked. */
import { Label, Title } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { answered, client, type Me, type Snapshot, type Vm } from "../api";
import { When } from "../components/labels";
import { metadataFields, metadataOf } from "../components/metadata";
import { Refusal } from "../components/notices";
import { checked, type Operation, OperationBar, OperationButton } from "../components/operation";
import { m, t } from "../i18n";
import { useList } from "../list";
import { useAll } from "../live";
import { refusalFor } from "../session";
import { type Branch, treeOf } from "../tree";

function take(vm: Vm, refusal: string | null): Operation {
  return {
    label: m("Take a snapshot"),
    refusal,
    fields: [
      { name: "name", label: m("Name") },
      { name: "memory", label: m("With its memory"), kind: "check" },
      { name: "quiesce", label: m("Let the guest agent freeze file systems"), kind: "check" },
    ],
    command: (v) => `novacron snapshot create ${vm.name} ${v["name"]}${checked(v["memory"]) ? " --memory" : ""}${checked(v["quiesce"]) ? " --quiesce" : ""}`,
    run: (v) => answered(client.POST("/api/v1/vms/{ref}/snapshots", { params: { path: { ref: vm.id } }, body: { name: v["name"] ?? "", memory: checked(v["memory"]), quiesce: checked(v["quiesce"]) } })),
  };
}

function ofSnapshot(vm: Vm, snapshot: Snapshot, refusal: string | null): Operation[] {
  const at = { params: { path: { ref: vm.id, name: snapshot.name } } };
  const subject = snapshot.name;
  return [
    {
      label: m("Revert"),
      subject,
      refusal: refusal ?? (snapshot.phase === "ready" ? null : m("It is not ready.")),
      warning: m("What the VM has written to its disk since is lost. Volumes stay as they are."),
      confirm: snapshot.name,
      command: () => `novacron snapshot revert ${vm.name} ${snapshot.name}`,
      run: () => answered(client.POST("/api/v1/vms/{ref}/snapshots/{name}/actions/revert", at)),
    },
    { label: m("Describe"), subject, refusal, fields: metadataFields(snapshot), run: (v) => answered(client.PATCH("/api/v1/vms/{ref}/snapshots/{name}", { ...at, body: metadataOf(v) })) },
    {
      label: m("Delete"),
      subject,
      refusal,
      warning: m("The snapshot is deleted; the VM stays as it is. Nobody can undo that."),
      confirm: snapshot.name,
      command: () => `novacron snapshot delete ${vm.name} ${snapshot.name}`,
      run: () => answered(client.DELETE("/api/v1/vms/{ref}/snapshots/{name}", at)),
    },
  ];
}

export function Snapshots({ vm, me }: { vm: Vm; me: Me }): ReactElement {
  const refusal = refusalFor(me, "write", vm.project);
  const list = useList("snapshot", { vm: vm.id }, async () => {
    const { items, revision } = await answered(client.GET("/api/v1/vms/{ref}/snapshots", { params: { path: { ref: vm.id } } }));
    return { items, next: null, revision };
  }, { belongs: (snapshot) => snapshot.vm === vm.id });
  const all = useAll("snapshot").filter((snapshot) => snapshot.vm === vm.id);
  return (
    <section className="nc-section" aria-label={t("Snapshots")}>
      <div className="nc-bar">
        <Title headingLevel="h2">{t("Snapshots")}</Title>
        <OperationButton operation={take(vm, refusal)} />
      </div>
      {list.error !== null && <Refusal title={t("{what} can't be shown", { what: t("Snapshots") })} error={list.error} />}
      {!list.loading && all.length === 0 && <p>{t("There is no snapshot.")}</p>}
      <Branches branches={treeOf(all)} vm={vm} refusal={refusal} />
    </section>
  );
}

function Branches({ branches, vm, refusal }: { branches: readonly Branch[]; vm: Vm; refusal: string | null }): ReactElement | null {
  if (branches.length === 0) return null;
  return (
    <ul className="nc-tree">
      {branches.map(({ snapshot, children }) => (
        <li key={snapshot.id}>
          <span className="nc-bar">
            <strong>{snapshot.name}</strong>
            {snapshot.id === vm.snapshot && <Label color="blue">{t("the VM continues from here")}</Label>}
            {snapshot.phase !== "ready" && <Label color={snapshot.phase === "failed" ? "red" : "grey"}>{snapshot.phase}</Label>}
            {snapshot.memory && <Label variant="outline">{t("with memory")}</Label>}
            <When at={snapshot.created_at} />
            <span>{snapshot.error || snapshot.description}</span>
            <OperationBar operations={ofSnapshot(vm, snapshot, refusal)} />
          </span>
          <Branches branches={children} vm={vm} refusal={refusal} />
        </li>
      ))}
    </ul>
  );
}
