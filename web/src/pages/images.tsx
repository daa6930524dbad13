/** Images, their imports with an upload that goes on where it was broken off, and exports of VMs. */
import { Progress } from "@patternfly/react-core";
import { useQuery } from "@tanstack/react-query";
import { type ReactElement, useState } from "react";
import { answered, client, type Export, type Image, type Import, type Me } from "../api";
import { BY_PROJECT, BY_TAG, FilterBar, useFilters } from "../components/filters";
import { When } from "../components/labels";
import { LiveList } from "../components/live_list";
import { metadataFields, metadataOf } from "../components/metadata";
import { refused } from "../components/notices";
import { given, type Operation, OperationBar } from "../components/operation";
import { PlainList } from "../components/plain";
import type { Column } from "../components/table";
import { bytes, percent } from "../format";
import { m, t } from "../i18n";
import { useList } from "../list";
import { useConnection } from "../live";
import { refusalFor } from "../session";
import { movesBy, useSorting } from "../sorting";

export function useImages(): { images: Image[]; error: unknown; loading: boolean } {
  const state = useConnection();
  const query = useQuery({
    queryKey: ["images"],
    enabled: state !== "connecting",
    queryFn: () => answered(client.GET("/api/v1/images")),
  });
  return { images: query.data?.items ?? [], error: query.error, loading: query.isPending };
}

function ofImage(me: Me, image: Image): Operation[] {
  const at = { params: { path: { name: image.name } } };
  const subject = image.name;
  const refusal = refusalFor(me, "write", image.project);
  const operates = refusalFor(me, "operate");
  return [
    { label: m("Describe"), subject, refusal, fields: metadataFields(image), run: (v) => answered(client.PATCH("/api/v1/images/{name}", { ...at, body: metadataOf(v) })) },
    {
      label: m("Copy"),
      subject,
      refusal: operates,
      fields: [
        { name: "target", label: m("To node") },
        { name: "source", label: m("From node"), optional: true },
      ],
      command: (v) => `novacron image copy ${image.name} ${v["target"]}`,
      run: (v) => answered(client.POST("/api/v1/images/{name}/actions/copy", { ...at, body: { target: v["target"] ?? "", source: given(v["source"]) } })),
    },
    {
      label: m("Move"),
      subject,
      refusal: operates,
      fields: [{ name: "project", label: m("Project"), optional: true, help: m("Empty: all projects may use it.") }],
      run: (v) => answered(client.POST("/api/v1/images/{name}/actions/move-to-project", { ...at, body: { project: given(v["project"]) ?? null } })),
    },
    {
      label: m("Delete"),
      subject,
      refusal,
      warning: m("The image is deleted on all nodes. No VM may use it."),
      confirm: image.name,
      command: () => `novacron image delete ${image.name}`,
      run: () => answered(client.DELETE("/api/v1/images/{name}", at)),
    },
  ];
}

function importImage(me: Me): Operation {
  return {
    label: m("Import an image"),
    refusal: refusalFor(me, "write", me.project),
    fields: [
      { name: "name", label: m("Name"), help: m("Lower-case letters, digits and hyphens.") },
      { name: "url", label: m("Address to fetch it from"), help: m("Such as https://images.example/debian.qcow2") },
      { name: "sha256", label: m("SHA-256"), optional: true },
      { name: "description", label: m("Description"), optional: true },
      { name: "node", label: m("Node"), optional: true, help: m("Empty: the platform chooses.") },
    ],
    command: (v) => `novacron image import ${v["name"]} ${v["url"]}`,
    run: (v) =>
      answered(client.POST("/api/v1/imports", { body: { name: v["name"] ?? "", url: v["url"] ?? "", sha256: given(v["sha256"]), description: v["description"] ?? "", node: given(v["node"]) } })),
  };
}

const FILTERS = [BY_PROJECT, BY_TAG] as const;

export function Images({ me }: { me: Me }): ReactElement {
  const filters = useFilters(FILTERS);
  const columns: readonly Column<Image>[] = [
    { title: m("Name"), width: "minmax(9rem, 1fr)", cell: (image) => image.name },
    { title: m("Description"), width: "minmax(9rem, 2fr)", cell: (image) => <span title={image.description}>{image.description}</span>, text: (image) => image.description },
    { title: m("Kind"), width: "6rem", cell: (image) => image.kind },
    { title: m("Size"), width: "7rem", cell: (image) => bytes(image.size_bytes) },
    { title: m("Disk"), width: "7rem", cell: (image) => (image.disk_bytes > 0 ? bytes(image.disk_bytes) : "-") },
    { title: m("Nodes"), width: "minmax(8rem, 1fr)", cell: (image) => image.nodes.join(", ") || "-" },
    { title: m("Project"), width: "minmax(6rem, 1fr)", cell: (image) => image.project ?? "-" },
    { title: m("Shown as"), width: "minmax(8rem, 1fr)", extra: true, cell: (image) => image.display_name },
    { title: m("Tags"), width: "minmax(8rem, 1fr)", extra: true, cell: (image) => image.tags.join(", ") },
    { title: m("Encrypted"), width: "6rem", extra: true, cell: (image) => (image.encryption_key === "" ? t("no") : t("yes")) },
    { title: m("Digest"), width: "minmax(12rem, 1fr)", extra: true, cell: (image) => <span title={image.digest}>{image.digest}</span>, text: (image) => image.digest },
    { title: "", width: "17rem", cell: (image) => <OperationBar operations={ofImage(me, image)} /> },
  ];
  return (
    <div className="nc-page">
      <PlainList level="h1" title={m("Images")} name={["images", filters.project, filters.tag]} fetchPage={() => answered(client.GET("/api/v1/images", { params: { query: filters } }))} columns={columns} keyOf={(image) => image.name} empty={m("There is no image.")} create={importImage(me)}>
        <FilterBar title={m("Images")} filters={FILTERS} />
      </PlainList>
      <Upload me={me} />
      <Imports me={me} />
      <Exports me={me} />
    </div>
  );
}

const PIECE_BYTES = 8 * 1024 * 1024;
const TRIES_MAX = 8;

/** Send a file in pieces; what the server holds already is not sent again. */
async function upload(file: File, name: string, progress: (percentage: number) => void): Promise<void> {
  const made = await answered(client.POST("/api/v1/imports", { body: { name, size_bytes: file.size } }));
  let held = made.held_bytes;
  let failures = 0;
  while (held < file.size) {
    const params = { path: { id: made.id }, query: { offset: held } };
    const piece = file.slice(held, held + PIECE_BYTES);
    const bodySerializer = (body: unknown): Blob => body as Blob;
    try {
      const call = client.PUT("/api/v1/imports/{id}/data", { params, body: piece as never, bodySerializer, headers: { "Content-Type": "application/octet-stream" } });
      held = (await answered(call)).held_bytes;
      failures = 0;
    } catch (error) {
      failures += 1;
      if (failures === TRIES_MAX) throw error;
      await new Promise((later) => setTimeout(later, Math.min(8_000, 250 * 2 ** failures)));
      held = (await answered(client.GET("/api/v1/imports/{id}", { params: { path: { id: made.id } } }))).held_bytes;
    }
    progress(percent(held, file.size));
  }
}

function Upload({ me }: { me: Me }): ReactElement {
  const [sent, setSent] = useState<number | null>(null);
  const forbidden = refusalFor(me, "write", me.project);
  const choose = (file: File | undefined): void => {
    if (file === undefined) return;
    const name = file.name.toLowerCase().replace(/\.[a-z0-9]+$/, "").replace(/[^a-z0-9-]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 63);
    setSent(0);
    upload(file, name, setSent)
      .catch((error: unknown) => refused(t("The upload of {name} ended", { name: file.name }), error))
      .finally(() => setSent(null));
  };
  const input = (
    <label className="nc-bar">
      {t("Upload a disk from this computer")}
      <input type="file" disabled={forbidden !== null || sent !== null} onChange={(event) => choose(event.target.files?.[0])} />
    </label>
  );
  return sent === null ? input : <Progress aria-label={t("Upload")} title={t("Upload")} value={Math.round(sent)} />;
}

function Imports({ me }: { me: Me }): ReactElement {
  const columns: readonly Column<Import>[] = [
    { title: m("Image"), width: "minmax(9rem, 1fr)", sort: "spec.name", cell: (one) => one.spec.name },
    { title: m("Phase"), width: "7rem", sort: "phase", cell: (one) => (one.aborting ? "aborting" : one.phase) },
    { title: m("Received"), width: "12rem", cell: (one) => (one.spec.size_bytes > 0 ? `${bytes(one.held_bytes)} (${Math.round(percent(one.held_bytes, one.spec.size_bytes))} %)` : bytes(one.held_bytes)) },
    { title: m("Node"), width: "minmax(7rem, 1fr)", sort: "node", cell: (one) => one.node },
    { title: m("Began"), width: "13rem", sort: "created_at", cell: (one) => <When at={one.created_at} />, text: (one) => one.created_at },
    { title: m("Error"), width: "minmax(9rem, 2fr)", cell: (one) => <span title={one.error}>{one.error}</span>, text: (one) => one.error },
    {
      title: "",
      width: "7rem",
      cell: (one) => (
        <OperationBar
          operations={[
            {
              label: m("Abort"),
              subject: one.spec.name,
              refusal: refusalFor(me, "write", one.project),
              warning: m("The import ends, and what it has stored is removed."),
              command: () => `novacron image abort ${one.id}`,
              run: () => answered(client.DELETE("/api/v1/imports/{id}", { params: { path: { id: one.id } } })),
            },
          ]}
        />
      ),
    },
  ];
  const sorting = useSorting("import-sort", "-created_at", columns);
  const sort = sorting.by;
  const list = useList("import", { sort }, (query) => answered(client.GET("/api/v1/imports", { params: { query: { sort, ...query } } })), { moves: movesBy(sort) });
  return <LiveList kind="import" title={m("Imports")} list={list} sorting={sorting} columns={columns} empty={m("Nothing has been imported.")} level="h2" />;
}

function Exports({ me }: { me: Me }): ReactElement {
  const columns: readonly Column<Export>[] = [
    { title: m("VM"), width: "minmax(9rem, 1fr)", sort: "vm_name", cell: (one) => one.vm_name },
    { title: m("Phase"), width: "7rem", sort: "phase", cell: (one) => one.phase },
    { title: m("Size"), width: "7rem", sort: "size_bytes", cell: (one) => bytes(one.size_bytes) },
    { title: m("Node"), width: "minmax(7rem, 1fr)", sort: "node", cell: (one) => one.node },
    { title: m("Began"), width: "13rem", sort: "created_at", cell: (one) => <When at={one.created_at} />, text: (one) => one.created_at },
    { title: m("Error"), width: "minmax(9rem, 2fr)", cell: (one) => <span title={one.error}>{one.error}</span>, text: (one) => one.error },
    {
      title: "",
      width: "7rem",
      cell: (one) => (
          <OperationBar
            operations={[
              {
                label: m("Delete"),
                subject: one.vm_name,
                refusal: refusalFor(me, "write", one.project),
                warning: m("The export is removed from its node."),
                command: () => `novacron vm delete-export ${one.id}`,
                run: () => answered(client.DELETE("/api/v1/exports/{id}", { params: { path: { id: one.id } } })),
              },
            ]}
          />
      ),
    },
  ];
  const sorting = useSorting("export-sort", "-created_at", columns);
  const sort = sorting.by;
  const list = useList("export", { sort }, (query) => answered(client.GET("/api/v1/exports", { params: { query: { sort, ...query } } })), { moves: movesBy(sort) });
  return <LiveList kind="export" title={m("Exports of VMs")} list={list} sorting={sorting} columns={columns} empty={m("No VM has been exported.")} level="h2" />;
}
