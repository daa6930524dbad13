/** Projects: who owns what, and how much of it there may be. */
import { useQuery } from "@tanstack/react-query";
import type { ReactElement } from "react";
import { answered, client, type Me, type Project, type Schemas } from "../api";
import { LiveList } from "../components/live_list";
import { metadataFields, metadataOf } from "../components/metadata";
import { Refusal } from "../components/notices";
import { checked, type Field, number, type Operation, OperationBar, type Values } from "../components/operation";
import { Rows } from "../components/plain";
import type { Column } from "../components/table";
import { m, t } from "../i18n";
import { useList } from "../list";
import { useObject } from "../live";
import { refusalFor } from "../session";

type Quota = Schemas["Quota"];

/** What a quota limits; a limit that is missing here does not compile. */
const LIMITS: Record<keyof Quota, string> = {
  vms: m("VMs"),
  vcpus: m("Virtual CPUs"),
  memory_mib: m("Memory in MiB"),
  disk_mib: m("Disks in MiB"),
  snapshots: m("Snapshots"),
  snapshot_mib: m("Snapshots in MiB"),
  images: m("Images"),
  image_mib: m("Images in MiB"),
  backups: m("Backups"),
  backup_mib: m("Backups in MiB"),
  networks: m("Networks"),
  forwards: m("Forwarded ports"),
  migrations: m("Migrations at once"),
};
const NAMES = Object.keys(LIMITS) as (keyof Quota)[];

function quotaFields(quota: Quota): Field[] {
  return NAMES.map((name) => ({ name, label: LIMITS[name], kind: "number", optional: true, value: String(quota[name] ?? "") }));
}

function quotaOf(values: Values): Quota {
  return Object.fromEntries(NAMES.map((name) => [name, number(values[name]) ?? null]));
}

const HOST_NETWORK = { name: "host_network", label: m("VMs may be put on the hosts' network"), kind: "check" } as const;
const ENCRYPTION = { name: "encryption", label: m("Encrypt new VMs, volumes and images"), kind: "check" } as const;

function createProject(me: Me): Operation {
  return {
    label: m("Create a project"),
    refusal: refusalFor(me, "manage"),
    fields: [{ name: "name", label: m("Name") }, { name: "description", label: m("Description"), optional: true }, HOST_NETWORK, ENCRYPTION, ...quotaFields({})],
    command: (v) => `novacron project create ${v["name"]}`,
    run: (v) => answered(client.POST("/api/v1/projects", { body: { name: v["name"] ?? "", description: v["description"] ?? "", host_network: checked(v["host_network"]), encryption: checked(v["encryption"]), quota: quotaOf(v) } })),
  };
}

function ofProject(me: Me, project: Project): Operation[] {
  const at = { params: { path: { name: project.name } } };
  const subject = project.name;
  const refusal = refusalFor(me, "manage");
  return [
    { label: m("Usage"), subject, run: () => answered(client.GET("/api/v1/projects/{name}/usage", at)), show: (used: Schemas["ProjectUsage"]) => <Usage {...used} /> },
    {
      label: m("Change"),
      subject,
      refusal,
      fields: [{ name: "name", label: m("Name"), value: project.name }, ...metadataFields(project), { ...HOST_NETWORK, value: String(project.host_network) }, { ...ENCRYPTION, value: String(project.encryption) }, ...quotaFields(project.quota)],
      run: (v) =>
        answered(
          client.PATCH("/api/v1/projects/{name}", {
            ...at,
            body: { ...(v["name"] !== project.name && { name: v["name"] }), ...metadataOf(v), host_network: checked(v["host_network"]), encryption: checked(v["encryption"]), quota: quotaOf(v) },
          }),
        ),
    },
    {
      label: m("Erase key"),
      subject,
      refusal: refusal ?? (project.encryption_key === null ? m("It encrypts nothing.") : null),
      warning: m("The project's key is destroyed: what it encrypts, on all disks and in all copies, can never be read again."),
      confirm: project.name,
      command: () => `novacron project erase-key ${project.name}`,
      run: () => answered(client.POST("/api/v1/projects/{name}/erase-key", { ...at, body: { confirm: project.name } })),
    },
    { label: m("Delete"), subject, refusal, warning: m("The project is deleted. It must be empty."), confirm: project.name, command: () => `novacron project delete ${project.name}`, run: () => answered(client.DELETE("/api/v1/projects/{name}", at)) },
  ];
}

function Usage({ usage, quota }: Schemas["ProjectUsage"]): ReactElement {
  const columns: readonly Column<keyof Quota>[] = [
    { title: m("What"), width: "minmax(10rem, 2fr)", cell: (name) => t(LIMITS[name]) },
    { title: m("Used"), width: "8rem", cell: (name) => usage[name] },
    { title: m("Limit"), width: "8rem", cell: (name) => quota[name] ?? t("none") },
  ];
  return <Rows title={m("Usage")} columns={columns} items={NAMES} keyOf={(name) => name} />;
}

export function Projects({ me }: { me: Me }): ReactElement {
  const list = useList("project", {}, (query) => answered(client.GET("/api/v1/projects", { params: { query } })));
  const columns: readonly Column<Project>[] = [
    { title: m("Name"), width: "minmax(9rem, 1fr)", cell: (project) => project.name },
    { title: m("Description"), width: "minmax(9rem, 2fr)", cell: (project) => <span title={project.description}>{project.description}</span>, text: (project) => project.description },
    { title: m("Limits"), width: "minmax(10rem, 2fr)", cell: (project) => NAMES.filter((name) => project.quota[name] != null).map((name) => `${t(LIMITS[name])}: ${project.quota[name]}`).join(", ") || "-" },
    { title: m("Encryption"), width: "7rem", cell: (project) => (project.encryption ? "on" : "off") },
    { title: "", width: "21rem", cell: (project) => <OperationBar operations={ofProject(me, project)} /> },
  ];
  return (
    <div className="nc-page">
      <LiveList kind="project" title={m("Projects")} list={list} columns={columns} empty={m("There is no project that you may see.")} create={createProject(me)} />
      <OwnUsage project={me.project} />
    </div>
  );
}

/** What the reader's own project uses. It is asked for again when the project changes. */
function OwnUsage({ project }: { project: string }): ReactElement | null {
  const revision = useObject("project", project)?.revision;
  const usage = useQuery({
    queryKey: ["plain", "usage", project, revision],
    queryFn: () => answered(client.GET("/api/v1/projects/{name}/usage", { params: { path: { name: project } } })),
  });
  if (usage.error !== null) return <Refusal title={t("{what} can't be shown", { what: t("Usage") })} error={usage.error} />;
  return usage.data === undefined ? null : <Usage {...usage.data} />;
}
