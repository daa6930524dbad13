/** What else can be done with a VM: change it, its interfaces, clone, export, and look into its guest. */
import { Button, TextInput, Title } from "@patternfly/react-core";
import { useMutation } from "@tanstack/react-query";
import { type ReactElement, useState } from "react";
import { answered, client, type Me, type Schemas, type Vm } from "../api";
import { metadataFields, metadataOf } from "../components/metadata";
import { Refusal } from "../components/notices";
import { checked, given, lines, number, type Operation, OperationBar, OperationButton } from "../components/operation";
import { Picture } from "../components/picture";
import { Rows } from "../components/plain";
import { m, t } from "../i18n";
import { refusalFor } from "../session";

const RESTART = Object.keys({ always: true, "on-failure": true, never: true } satisfies Record<Schemas["Restart"], true>);
const at = (vm: Vm): { params: { path: { ref: string } } } => ({ params: { path: { ref: vm.id } } });

function changeVm(vm: Vm, refusal: string | null): Operation {
  const { spec } = vm;
  return {
    label: m("Change"),
    subject: vm.name,
    refusal,
    fields: [
      { name: "name", label: m("Name"), value: vm.name },
      { name: "vcpus", label: m("Virtual CPUs"), kind: "number", value: String(spec.vcpus) },
      { name: "memory_mib", label: m("Memory in MiB"), kind: "number", value: String(spec.memory_mib) },
      { name: "disk_mib", label: m("Disk in MiB"), kind: "number", optional: true, value: String(spec.disk_mib ?? ""), help: m("It can only grow.") },
      { name: "restart", label: m("Start again when it ends"), options: RESTART, value: spec.restart },
      { name: "ha", label: m("High availability: start it on another node when its node fails"), kind: "check", value: String(spec.ha) },
      { name: "protected", label: m("Protect it from being deleted"), kind: "check", value: String(spec.protected) },
      ...metadataFields(vm),
    ],
    command: (v) => `novacron vm set ${vm.name} --vcpus ${v["vcpus"]} --memory ${v["memory_mib"]}`,
    run: (v) =>
      answered(
        client.PATCH("/api/v1/vms/{ref}", {
          params: { path: { ref: vm.id }, header: { "If-Match": `"${vm.revision}"` } },
          body: {
            ...(v["name"] !== vm.name && { name: v["name"] }),
            ...(Number(v["vcpus"]) !== spec.vcpus && { vcpus: Number(v["vcpus"]) }),
            ...(Number(v["memory_mib"]) !== spec.memory_mib && { memory_mib: Number(v["memory_mib"]) }),
            ...(number(v["disk_mib"]) !== undefined && number(v["disk_mib"]) !== spec.disk_mib && { disk_mib: Number(v["disk_mib"]) }),
            ...(v["restart"] !== spec.restart && { restart: v["restart"] as Schemas["Restart"] }),
            ...(checked(v["ha"]) !== spec.ha && { ha: checked(v["ha"]) }),
            ...(checked(v["protected"]) !== spec.protected && { protected: checked(v["protected"]) }),
            ...metadataOf(v),
          },
        }),
      ),
  };
}

function power(vm: Vm, refusal: string | null): Operation[] {
  const state = vm.status.state;
  return [
    { label: m("Pause"), subject: vm.name, refusal: refusal ?? (state === "running" ? null : m("Only a VM that runs can be paused.")), command: () => `novacron vm pause ${vm.name}`, run: () => answered(client.POST("/api/v1/vms/{ref}/actions/pause", at(vm))) },
    { label: m("Resume"), subject: vm.name, refusal: refusal ?? (state === "paused" ? null : m("It is not paused.")), command: () => `novacron vm resume ${vm.name}`, run: () => answered(client.POST("/api/v1/vms/{ref}/actions/resume", at(vm))) },
    {
      label: m("Reset"),
      subject: vm.name,
      refusal: refusal ?? (state === "running" ? null : m("Only a VM that runs can be reset.")),
      warning: m("The guest starts again, as if its reset button was pressed: what it has not written is lost."),
      undo: true,
      command: () => `novacron vm reset ${vm.name}`,
      run: () => answered(client.POST("/api/v1/vms/{ref}/actions/reset", at(vm))),
    },
  ];
}

function copies(vm: Vm, refusal: string | null): Operation[] {
  return [
    {
      label: m("Clone"),
      subject: vm.name,
      refusal,
      fields: [
        { name: "name", label: m("Name of the clone") },
        { name: "linked", label: m("Share the disk of before with it, which is fast"), kind: "check" },
        { name: "address", label: m("Address"), optional: true },
      ],
      command: (v) => `novacron vm clone ${vm.name} ${v["name"]}${checked(v["linked"]) ? " --linked" : ""}`,
      run: (v) => answered(client.POST("/api/v1/vms/{ref}/actions/clone", { ...at(vm), body: { name: v["name"] ?? "", linked: checked(v["linked"]), address: given(v["address"]) } })),
    },
    { label: m("Export"), subject: vm.name, refusal, warning: m("Its node makes one file of the VM as it is now; it stays there until it is deleted."), command: () => `novacron vm export ${vm.name}`, run: () => answered(client.POST("/api/v1/vms/{ref}/actions/export", at(vm))) },
    {
      label: m("Back up"),
      subject: vm.name,
      refusal,
      fields: [{ name: "repository", label: m("Repository"), help: m("Its name or id. Volumes are not included.") }],
      command: (v) => `novacron backup create ${vm.name} --repository ${v["repository"]}`,
      run: (v) => answered(client.POST("/api/v1/vms/{ref}/actions/backup", { ...at(vm), body: { repository: v["repository"] ?? "" } })),
    },
    {
      label: m("Move to project"),
      subject: vm.name,
      refusal: refusal ?? (vm.spec.power === "stopped" ? null : m("Stop it first.")),
      fields: [{ name: "project", label: m("Project") }],
      command: (v) => `novacron vm move-to-project ${vm.name} ${v["project"]}`,
      run: (v) => answered(client.POST("/api/v1/vms/{ref}/actions/move-to-project", { ...at(vm), body: { project: v["project"] ?? "" } })),
    },
  ];
}

function recover(vm: Vm): Operation {
  return {
    label: m("Recover"),
    subject: vm.name,
    warning: m("The VM starts on another node. Do this only if its node is off for certain: else the guest runs twice and destroys its disk."),
    fields: [{ name: "discard_disk", label: m("Begin with a new disk, if the old one is on that node"), kind: "check" }],
    confirm: vm.name,
    command: () => `novacron vm recover ${vm.name}`,
    run: (v) => answered(client.POST("/api/v1/vms/{ref}/actions/recover", { ...at(vm), body: { confirm: vm.name, discard_disk: checked(v["discard_disk"]) } })),
  };
}

/** All that changes the VM beside the buttons at the top. */
export function MoreActions({ vm, me }: { vm: Vm; me: Me }): ReactElement {
  const refusal = refusalFor(me, "write", vm.project);
  return (
    <div className="nc-bar">
      {[changeVm(vm, refusal), ...power(vm, refusal), ...copies(vm, refusal), ...(vm.lost_on === null ? [] : [recover(vm)])].map((operation) => (
        <OperationButton key={operation.label} operation={operation} />
      ))}
    </div>
  );
}

type Nic = NonNullable<Vm["spec"]["nics"]>[number];

export function Interfaces({ vm, me }: { vm: Vm; me: Me }): ReactElement {
  const refusal = refusalFor(me, "write", vm.project);
  const nics = vm.spec.nics ?? [];
  const fields = (nic?: Nic): Operation["fields"] => [
    { name: "network", label: m("Network"), value: nic?.network ?? "" },
    { name: "address", label: m("Address"), optional: true, value: nic?.address ?? "" },
    { name: "groups", label: m("Security groups"), optional: true, value: (nic?.groups ?? []).join(", ") },
  ];
  const add: Operation = {
    label: m("Add an interface"),
    refusal,
    fields: fields(),
    command: (v) => `novacron vm nic add ${vm.name} ${v["network"]}`,
    run: (v) => answered(client.POST("/api/v1/vms/{ref}/nics", { ...at(vm), body: { network: v["network"] ?? "", address: given(v["address"]), groups: lines(v["groups"]) } })),
  };
  const ofNic = (nic: Nic): Operation[] => {
    const mac = nic.mac ?? "";
    const place = { params: { path: { ref: vm.id, mac } } };
    return [
      {
        label: m("Change"),
        subject: mac,
        refusal,
        fields: fields(nic),
        run: (v) => answered(client.PATCH("/api/v1/vms/{ref}/nics/{mac}", { ...place, body: { ...(v["network"] !== nic.network && { network: v["network"] }), ...((v["address"] ?? "") !== (nic.address ?? "") && { address: v["address"] }), groups: lines(v["groups"]) } })),
      },
      { label: m("Remove"), subject: mac, refusal, warning: m("The guest loses this interface."), undo: true, command: () => `novacron vm nic remove ${vm.name} ${mac}`, run: () => answered(client.DELETE("/api/v1/vms/{ref}/nics/{mac}", place)) },
    ];
  };
  return (
    <section className="nc-section" aria-label={t("Interfaces")}>
      <div className="nc-bar">
        <Title headingLevel="h2">{t("Interfaces")}</Title>
        <OperationButton operation={add} />
      </div>
      {nics.length === 0 ? (
        <p>{t("It is in no network.")}</p>
      ) : (
        <Rows
          title={m("Interfaces")}
          items={nics}
          keyOf={(nic) => nic.mac ?? nic.network}
          columns={[
            { title: m("Network"), width: "minmax(8rem, 1fr)", cell: (nic) => nic.network },
            { title: m("Address"), width: "minmax(8rem, 1fr)", cell: (nic) => nic.address ?? "-" },
            { title: m("MAC"), width: "10rem", cell: (nic) => nic.mac ?? "-" },
            { title: m("Security groups"), width: "minmax(8rem, 1fr)", cell: (nic) => (nic.groups ?? []).join(", ") || "-" },
            { title: "", width: "12rem", cell: (nic) => <OperationBar operations={ofNic(nic)} /> },
          ]}
        />
      )}
    </section>
  );
}

const COMMAND_WAITS_MAX = 60;

/** Run a program in the guest; return what it printed once it has ended. */
async function runInGuest(vm: Vm, line: string): Promise<Schemas["GuestCommand"]> {
  const { pid } = await answered(client.POST("/api/v1/vms/{ref}/commands", { ...at(vm), body: { arguments: ["sh", "-c", line] } }));
  for (let tries = 0; ; tries++) {
    const path = { ref: vm.id, pid: String(pid) };
    const ended = await answered(client.GET("/api/v1/vms/{ref}/commands/{pid}", { params: { path, query: { wait: 10 } } }));
    if (!ended.running || tries === COMMAND_WAITS_MAX) return ended;
  }
}

/** Bytes as JSON carries them, as text. */
function textOf(base64: string): string {
  return new TextDecoder().decode(Uint8Array.from(atob(base64), (one) => one.charCodeAt(0)));
}

/** The end of the serial console's log, a screenshot, and commands through the guest agent. */
export function GuestView({ vm, me }: { vm: Vm; me: Me }): ReactElement {
  const [line, setLine] = useState("");
  const log = useMutation({ mutationFn: () => answered(client.GET("/api/v1/vms/{ref}/console-log", { ...at(vm), parseAs: "text" })) });
  const command = useMutation({ mutationFn: () => runInGuest(vm, line) });
  const refusal = refusalFor(me, "console", vm.project) !== null;
  return (
    <section className="nc-section" aria-label={t("Guest")}>
      <Title headingLevel="h2">{t("Guest")}</Title>
      <div className="nc-bar">
        <Button variant="secondary" isDisabled={refusal} isLoading={log.isPending} onClick={() => log.mutate()}>
          {t("Show the end of the console's log")}
        </Button>
        {vm.spec.display !== "none" && <Screenshot vm={vm} disabled={refusal} />}
      </div>
      {log.error !== null && <Refusal title={t("{what} can't be shown", { what: t("The log") })} error={log.error} />}
      {log.data !== undefined && (
        <pre className="nc-output" tabIndex={0} aria-label={t("Console log")}>
          {String(log.data)}
        </pre>
      )}
      <form
        className="nc-bar"
        onSubmit={(event) => {
          event.preventDefault();
          command.mutate();
        }}
      >
        <TextInput className="nc-filter" aria-label={t("Command for the guest's shell")} placeholder={t("Command for the guest's shell")} value={line} onChange={(_, value) => setLine(value)} />
        <Button type="submit" variant="secondary" isDisabled={refusal || line === "" || command.isPending} isLoading={command.isPending}>
          {t("Run it in the guest")}
        </Button>
      </form>
      {command.error !== null && <Refusal title={t("It was not run")} error={command.error} />}
      {command.data !== undefined && (
        <>
          <p role="status">{command.data.running ? t("It still runs.") : t("It ended with exit code {code}.", { code: command.data.exit_code ?? "-" })}</p>
          <pre className="nc-output" tabIndex={0} aria-label={t("Output")}>
            {textOf(command.data.stdout)}
            {textOf(command.data.stderr)}
          </pre>
        </>
      )}
    </section>
  );
}

function Screenshot({ vm, disabled }: { vm: Vm; disabled: boolean }): ReactElement {
  const take = useMutation({
    mutationFn: () => answered(client.GET("/api/v1/vms/{ref}/screenshot", { ...at(vm), parseAs: "blob" })),
  });
  return (
    <>
      <Button variant="secondary" isDisabled={disabled} isLoading={take.isPending} onClick={() => take.mutate()}>
        {t("Take a screenshot")}
      </Button>
      {take.error !== null && <Refusal title={t("There is no screenshot")} error={take.error} />}
      {take.data !== undefined && <Picture blob={take.data as unknown as Blob} alt={t("Display of {name}", { name: vm.name })} />}
    </>
  );
}
