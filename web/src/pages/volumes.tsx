/** Volumes, and the pools that hold them. */
import type { ReactElement } from "react";
import { Link } from "wouter";
import { hasTags } from "../address";
import { answered, client, type Me, type Schemas, type Volume } from "../api";
import { BY_PROJECT, BY_TAG, FilterBar, useFilters } from "../components/filters";
import { VolumeLabel, When } from "../components/labels";
import { LiveList } from "../components/live_list";
import { metadataFields, metadataOf } from "../components/metadata";
import { checked, given, number, type Operation, OperationBar } from "../components/operation";
import { PlainList } from "../components/plain";
import type { Column } from "../components/table";
import { bytes, mib } from "../format";
import { m, t } from "../i18n";
import { useList } from "../list";
import { may, refusalFor } from "../session";
import { useSorting } from "../sorting";

function createVolume(me: Me): Operation {
  return {
    label: m("Create a volume"),
    refusal: refusalFor(me, "write", me.project),
    fields: [
      { name: "name", label: m("Name"), help: m("Lower-case letters, digits and hyphens.") },
      { name: "size_mib", label: m("Size in MiB"), kind: "number" },
      { name: "pool", label: m("Pool"), optional: true },
      { name: "node", label: m("Node"), optional: true, help: m("Empty: the platform chooses.") },
      { name: "image", label: m("Image to copy"), optional: true, help: m("Empty: the volume is empty.") },
      { name: "iops", label: m("Limit of requests a second"), kind: "number", optional: true },
      { name: "bytes_per_s", label: m("Limit of bytes a second"), kind: "number", optional: true },
    ],
    command: (v) => `novacron volume create ${v["name"]} --size ${v["size_mib"]}M${given(v["pool"]) ? ` --pool ${v["pool"]}` : ""}`,
    run: (v) =>
      answered(
        client.POST("/api/v1/volumes", {
          body: { name: v["name"] ?? "", size_mib: Number(v["size_mib"]), pool: given(v["pool"]), node: given(v["node"]), image: given(v["image"]), iops: number(v["iops"]), bytes_per_s: number(v["bytes_per_s"]) },
        }),
      ),
  };
}

function ofVolume(me: Me, volume: Volume): Operation[] {
  const at = { params: { path: { ref: volume.id } } };
  const subject = volume.name;
  const refusal = refusalFor(me, "write", volume.project);
  const free = volume.vm === null;
  return [
    free
      ? {
          label: m("Attach"),
          subject,
          refusal,
          fields: [
            { name: "vm", label: m("VM"), help: m("Its name or id.") },
            { name: "read_only", label: m("Read only"), kind: "check" },
            { name: "boot_order", label: m("Boot order"), kind: "number", optional: true },
          ],
          command: (v) => `novacron volume attach ${volume.name} ${v["vm"]}`,
          run: (v) => answered(client.POST("/api/v1/volumes/{ref}/actions/attach", { ...at, body: { vm: v["vm"] ?? "", read_only: checked(v["read_only"]), boot_order: number(v["boot_order"]) } })),
        }
      : {
          label: m("Detach"),
          subject,
          refusal,
          warning: m("The guest loses this disk. Unmount it in the guest first."),
          undo: true,
          command: () => `novacron volume detach ${volume.name}`,
          run: () => answered(client.POST("/api/v1/volumes/{ref}/actions/detach", at)),
        },
    {
      label: m("Change"),
      subject,
      refusal,
      fields: [
        { name: "name", label: m("Name"), value: volume.name },
        { name: "size_mib", label: m("Size in MiB"), kind: "number", value: String(volume.size_mib), help: m("It can only grow.") },
        { name: "iops", label: m("Limit of requests a second"), kind: "number", optional: true, value: String(volume.iops ?? "") },
        { name: "bytes_per_s", label: m("Limit of bytes a second"), kind: "number", optional: true, value: String(volume.bytes_per_s ?? "") },
        ...metadataFields(volume),
      ],
      run: (v) =>
        answered(
          client.PATCH("/api/v1/volumes/{ref}", {
            ...at,
            body: { ...(v["name"] !== volume.name && { name: v["name"] }), ...(Number(v["size_mib"]) !== volume.size_mib && { size_mib: Number(v["size_mib"]) }), iops: number(v["iops"]) ?? null, bytes_per_s: number(v["bytes_per_s"]) ?? null, ...metadataOf(v) },
          }),
        ),
    },
    {
      label: m("Move"),
      subject,
      refusal: refusal ?? (free ? null : m("Detach it first.")),
      fields: [{ name: "project", label: m("Project") }],
      command: (v) => `novacron volume move-to-project ${volume.name} ${v["project"]}`,
      run: (v) => answered(client.POST("/api/v1/volumes/{ref}/actions/move-to-project", { ...at, body: { project: v["project"] ?? "" } })),
    },
    {
      label: m("Delete"),
      subject,
      refusal: refusal ?? (free ? null : m("Detach it first.")),
      warning: m("The volume and its data are deleted. Nobody can undo that."),
      confirm: volume.name,
      command: () => `novacron volume delete ${volume.name}`,
      run: () => answered(client.DELETE("/api/v1/volumes/{ref}", at)),
    },
  ];
}

type Foreseen = Schemas["CapacityForecast"];
type Pool = Schemas["PoolOnNode"] & { foreseen: Foreseen | undefined };

const FORECASTS_MAX = 5_000;

/** Pools, and when each is full; who may not see the fleet sees pools alone. */
async function poolsOf(me: Me): Promise<{ items: Pool[] }> {
  const [{ items }, foreseen] = await Promise.all([answered(client.GET("/api/v1/pools")), may(me, "read", null) ? fullPools() : []]);
  const byName = new Map(foreseen.map((one) => [one.name, one]));
  return { items: items.map((pool) => ({ ...pool, foreseen: byName.get(`${pool.node}/${pool.name}`) ?? byName.get(pool.name) })) };
}

async function fullPools(): Promise<Foreseen[]> {
  const found: Foreseen[] = [];
  for (let cursor: string | undefined; ; ) {
    const page = await answered(client.GET("/api/v1/capacity", { params: { query: { resource: "pool", limit: 500, cursor } } }));
    found.push(...page.items);
    if (page.next === null || found.length >= FORECASTS_MAX) return found;
    cursor = page.next;
  }
}

const FILTERS = [{ name: "vm", label: m("VM") }, BY_PROJECT, BY_TAG] as const;

export function Volumes({ me }: { me: Me }): ReactElement {
  const columns: readonly Column<Volume>[] = [
    { title: m("Name"), width: "minmax(10rem, 2fr)", sort: "name", cell: (volume) => volume.name },
    { title: m("Phase"), width: "7rem", cell: (volume) => <VolumeLabel phase={volume.phase} />, text: (volume) => volume.phase },
    { title: m("Size"), width: "7rem", sort: "size_mib", cell: (volume) => mib(volume.size_mib) },
    { title: m("Used"), width: "7rem", sort: "used_bytes", cell: (volume) => bytes(volume.used_bytes) },
    { title: m("Pool"), width: "minmax(6rem, 1fr)", cell: (volume) => volume.pool },
    { title: m("Node"), width: "minmax(7rem, 1fr)", sort: "node", cell: (volume) => volume.node },
    { title: m("VM"), width: "minmax(8rem, 1fr)", cell: (volume) => (volume.vm === null ? "-" : <Link href={`/vms/${volume.vm}`}>{volume.vm_name}</Link>), text: (volume) => volume.vm_name ?? "" },
    { title: m("Project"), width: "minmax(6rem, 1fr)", sort: "project", cell: (volume) => volume.project },
    { title: m("Error"), width: "minmax(6rem, 1fr)", cell: (volume) => <span title={volume.error}>{volume.error}</span>, text: (volume) => volume.error },
    { title: m("Description"), width: "minmax(9rem, 2fr)", extra: true, cell: (volume) => <span title={volume.description}>{volume.description}</span>, text: (volume) => volume.description },
    { title: m("Tags"), width: "minmax(8rem, 1fr)", extra: true, cell: (volume) => volume.tags.join(", ") },
    { title: m("Image"), width: "minmax(7rem, 1fr)", extra: true, cell: (volume) => volume.image ?? "-" },
    { title: m("Requests a second"), width: "9rem", extra: true, cell: (volume) => volume.iops ?? "-" },
    { title: m("Bytes a second"), width: "9rem", extra: true, cell: (volume) => (volume.bytes_per_s === null ? "-" : bytes(volume.bytes_per_s)) },
    { title: m("Read only"), width: "6rem", extra: true, cell: (volume) => (volume.read_only ? t("yes") : t("no")) },
    { title: m("Created"), width: "13rem", extra: true, cell: (volume) => <When at={volume.created_at} />, text: (volume) => volume.created_at },
    { title: m("Id"), width: "13rem", extra: true, cell: (volume) => volume.id },
    { title: "", width: "21rem", cell: (volume) => <OperationBar operations={ofVolume(me, volume)} /> },
  ];
  const sorting = useSorting("sort", "name", columns);
  const sort = sorting.by;
  const filters = useFilters(FILTERS);
  const list = useList("volume", { sort, ...filters }, (query) => answered(client.GET("/api/v1/volumes", { params: { query: { sort, ...filters, ...query } } })), {
    belongs: (volume) => hasTags(volume.tags, filters.tag),
    moves: (old, now) => old.vm !== now.vm || old.project !== now.project || old.tags.join() !== now.tags.join() || old.name !== now.name || old.size_mib !== now.size_mib || old.used_bytes !== now.used_bytes,
  });
  return (
    <div className="nc-page">
      <LiveList kind="volume" title={m("Volumes")} list={list} columns={columns} empty={m("There is no volume.")} create={createVolume(me)} sorting={sorting}>
        <FilterBar title={m("Volumes")} filters={FILTERS} />
      </LiveList>
      <PlainList
        title={m("Pools")}
        name={["pools"]}
        fetchPage={() => poolsOf(me)}
        keyOf={(pool) => `${pool.node}/${pool.name}`}
        empty={m("No node has a pool.")}
        columns={[
          { title: m("Pool"), width: "minmax(8rem, 1fr)", cell: (pool) => pool.name },
          { title: m("Kind"), width: "6rem", cell: (pool) => pool.kind },
          { title: m("Node"), width: "minmax(8rem, 1fr)", cell: (pool) => pool.node },
          { title: m("Size"), width: "7rem", cell: (pool) => bytes(pool.bytes_total) },
          { title: m("Free"), width: "7rem", cell: (pool) => bytes(pool.bytes_free) },
          { title: m("Volumes"), width: "6rem", cell: (pool) => pool.volumes },
          { title: m("Promised"), width: "7rem", cell: (pool) => bytes(pool.promised_bytes) },
          { title: m("Used"), width: "7rem", cell: (pool) => bytes(pool.used_bytes) },
          { title: m("Full on"), width: "8rem", cell: (pool) => pool.foreseen?.full_on ?? "-" },
          { title: m("In words"), width: "minmax(12rem, 3fr)", cell: (pool) => <span title={pool.foreseen?.words}>{pool.foreseen?.words ?? t("Nothing is foreseen of it.")}</span>, text: (pool) => pool.foreseen?.words ?? "" },
        ]}
      />
    </div>
  );
}
