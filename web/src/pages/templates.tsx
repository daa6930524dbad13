/** Flavors and templates: what new VMs begin with. */
import type { ReactElement } from "react";
import { answered, client, type Flavor, type Me, type Template } from "../api";
import { When } from "../components/labels";
import { LiveList } from "../components/live_list";
import { metadataFields, metadataOf } from "../components/metadata";
import { checked, type Field, given, number, type Operation, OperationBar, type Values } from "../components/operation";
import type { Column } from "../components/table";
import { m } from "../i18n";
import { useList } from "../list";
import { refusalFor } from "../session";

/** Changing what all projects use takes the right to operate the fleet. */
const refusalOf = (me: Me, { project }: { project: string | null }): string | null => refusalFor(me, project === null ? "operate" : "write", project);

const SHARED: Field = { name: "shared", label: m("For all projects"), kind: "check" };
const shared = (v: Values): string => (checked(v["shared"]) ? " --shared" : "");

function sizeFields(spec?: Flavor["spec"]): Field[] {
  return [
    { name: "vcpus", label: m("Virtual CPUs"), kind: "number", value: String(spec?.vcpus ?? 1) },
    { name: "memory_mib", label: m("Memory in MiB"), kind: "number", value: String(spec?.memory_mib ?? 256) },
    { name: "disk_mib", label: m("Disk in MiB"), kind: "number", optional: true, value: String(spec?.disk_mib ?? ""), help: m("Empty: as large as the image's.") },
  ];
}

const sizeOf = (v: Values): Flavor["spec"] => ({ vcpus: Number(v["vcpus"]), memory_mib: Number(v["memory_mib"]), disk_mib: number(v["disk_mib"]) ?? null });
const sizeOptions = (v: Values): string => ` --vcpus ${v["vcpus"]} --memory ${v["memory_mib"]}M${given(v["disk_mib"]) ? ` --disk ${v["disk_mib"]}M` : ""}`;

function ofFlavor(me: Me, flavor: Flavor): Operation[] {
  const at = { params: { path: { name: flavor.name } } };
  const refusal = refusalOf(me, flavor);
  return [
    {
      label: m("Change"),
      subject: flavor.name,
      refusal,
      fields: [...sizeFields(flavor.spec), ...metadataFields(flavor)],
      command: (v) => `novacron flavor set ${flavor.name}${sizeOptions(v)}`,
      run: (v) => answered(client.PATCH("/api/v1/flavors/{name}", { ...at, body: { spec: { ...flavor.spec, ...sizeOf(v) }, ...metadataOf(v) } })),
    },
    {
      label: m("Delete"),
      subject: flavor.name,
      refusal,
      warning: m("VMs that were created with it stay as they are."),
      command: () => `novacron flavor delete ${flavor.name}`,
      run: () => answered(client.DELETE("/api/v1/flavors/{name}", at)),
    },
  ];
}

export function Templates({ me }: { me: Me }): ReactElement {
  const list = useList("flavor", {}, (query) => answered(client.GET("/api/v1/flavors", { params: { query } })));
  const columns: readonly Column<Flavor>[] = [
    { title: m("Name"), width: "minmax(10rem, 2fr)", cell: (flavor) => flavor.name },
    { title: m("Virtual CPUs"), width: "7rem", cell: (flavor) => flavor.spec.vcpus },
    { title: m("Memory in MiB"), width: "8rem", cell: (flavor) => flavor.spec.memory_mib },
    { title: m("Disk in MiB"), width: "8rem", cell: (flavor) => flavor.spec.disk_mib ?? "-" },
    { title: m("Project"), width: "minmax(7rem, 1fr)", cell: (flavor) => flavor.project ?? "-" },
    { title: m("Description"), width: "minmax(8rem, 2fr)", cell: (flavor) => flavor.description },
    { title: m("Created"), width: "13rem", cell: (flavor) => <When at={flavor.created_at} />, text: (flavor) => flavor.created_at },
    { title: "", width: "11rem", cell: (flavor) => <OperationBar operations={ofFlavor(me, flavor)} /> },
  ];
  const create: Operation = {
    label: m("Create a flavor"),
    refusal: refusalFor(me, "write", me.project),
    fields: [{ name: "name", label: m("Name"), help: m("Lower-case letters, digits and hyphens.") }, ...sizeFields(), SHARED],
    command: (v) => `novacron flavor create ${v["name"]}${sizeOptions(v)}${shared(v)}`,
    run: (v) => answered(client.POST("/api/v1/flavors", { body: { name: v["name"] ?? "", spec: sizeOf(v), shared: checked(v["shared"]) } })),
  };
  return (
    <div className="nc-page">
      <LiveList kind="flavor" title={m("Flavors")} list={list} columns={columns} empty={m("There is no flavor.")} create={create} />
      <VmTemplates me={me} />
    </div>
  );
}

function ofTemplate(me: Me, template: Template): Operation[] {
  const at = { params: { path: { name: template.name } } };
  const refusal = refusalOf(me, template);
  return [
    {
      label: m("Change"),
      subject: template.name,
      refusal,
      fields: [{ name: "image", label: m("Image"), optional: true, value: template.spec.image ?? "" }, ...metadataFields(template)],
      command: (v) => `novacron template set ${template.name}${given(v["image"]) ? ` --image ${v["image"]}` : ""}`,
      run: (v) => {
        const { image: _, ...rest } = template.spec;
        const image = given(v["image"]);
        const spec = image === undefined ? rest : { ...rest, image };
        return answered(client.PATCH("/api/v1/templates/{name}", { ...at, body: { spec, ...metadataOf(v) } }));
      },
    },
    {
      label: m("Delete"),
      subject: template.name,
      refusal,
      warning: m("VMs that were created with it stay as they are."),
      command: () => `novacron template delete ${template.name}`,
      run: () => answered(client.DELETE("/api/v1/templates/{name}", at)),
    },
  ];
}

function VmTemplates({ me }: { me: Me }): ReactElement {
  const list = useList("template", {}, (query) => answered(client.GET("/api/v1/templates", { params: { query } })));
  const columns: readonly Column<Template>[] = [
    { title: m("Name"), width: "minmax(10rem, 2fr)", cell: (template) => template.name },
    { title: m("Image"), width: "minmax(8rem, 1fr)", cell: (template) => template.spec.image ?? "-" },
    { title: m("Sets"), width: "minmax(12rem, 3fr)", cell: (template) => Object.keys(template.spec).sort().join(", ") },
    { title: m("Project"), width: "minmax(7rem, 1fr)", cell: (template) => template.project ?? "-" },
    { title: m("Description"), width: "minmax(8rem, 2fr)", cell: (template) => template.description },
    { title: m("Created"), width: "13rem", cell: (template) => <When at={template.created_at} />, text: (template) => template.created_at },
    { title: "", width: "11rem", cell: (template) => <OperationBar operations={ofTemplate(me, template)} /> },
  ];
  const create: Operation = {
    label: m("Create a template"),
    refusal: refusalFor(me, "write", me.project),
    fields: [
      { name: "name", label: m("Name"), help: m("Lower-case letters, digits and hyphens.") },
      { name: "vm", label: m("VM"), help: m("It is made like this VM, without its name and addresses.") },
      SHARED,
    ],
    command: (v) => `novacron template create ${v["name"]} --vm ${v["vm"]}${shared(v)}`,
    run: (v) => answered(client.POST("/api/v1/templates", { body: { name: v["name"] ?? "", vm: v["vm"] ?? "", shared: checked(v["shared"]) } })),
  };
  return <LiveList kind="template" title={m("Templates")} list={list} columns={columns} empty={m("There is no template.")} create={create} level="h2" />;
}
