/** Volumes, networks and images. */
import { Title } from "@patternfly/react-core";
import { useQuery } from "@tanstack/react-query";
import type { ReactElement } from "react";
import { Link } from "wouter";
import { answered, client, type Image, type Network, type Volume } from "../api";
import { VolumeLabel, When } from "../components/labels";
import { Refusal } from "../components/notices";
import { type Column, LiveTable } from "../components/table";
import { bytes, mib } from "../format";
import { useList } from "../list";
import { useWatchState } from "../live";

const VOLUMES: readonly Column<Volume>[] = [
  { title: "Name", width: "minmax(10rem, 2fr)", sort: "name", cell: (volume) => volume.name },
  { title: "Phase", width: "7rem", cell: (volume) => <VolumeLabel phase={volume.phase} /> },
  { title: "Size", width: "7rem", cell: (volume) => mib(volume.size_mib) },
  { title: "Used", width: "7rem", cell: (volume) => bytes(volume.used_bytes) },
  { title: "Pool", width: "minmax(7rem, 1fr)", cell: (volume) => volume.pool },
  { title: "Node", width: "minmax(7rem, 1fr)", cell: (volume) => volume.node },
  {
    title: "VM",
    width: "minmax(8rem, 1fr)",
    cell: (volume) => (volume.vm === null ? "free" : <Link href={`/vms/${volume.vm}`}>{volume.vm_name}</Link>),
  },
  { title: "Project", width: "minmax(7rem, 1fr)", cell: (volume) => volume.project },
  { title: "Error", width: "minmax(7rem, 1fr)", cell: (volume) => <span title={volume.error}>{volume.error}</span> },
];

export function Volumes(): ReactElement {
  const sort = "name";
  const list = useList("volume", { sort }, (query) => answered(client.GET("/api/v1/volumes", { params: { query: { sort, ...query } } })), { moves: (old, now) => old.name !== now.name });
  return (
    <div className="nc-page">
      <Title headingLevel="h1">Volumes</Title>
      <LiveTable kind="volume" label="Volumes" list={list} columns={VOLUMES} empty="There is no volume." />
    </div>
  );
}

const NETWORKS: readonly Column<Network>[] = [
  { title: "Name", width: "minmax(10rem, 2fr)", cell: (network) => network.name },
  { title: "Kind", width: "6rem", cell: (network) => network.spec.kind },
  { title: "Addresses", width: "minmax(9rem, 1fr)", cell: (network) => network.spec.subnet ?? "-" },
  { title: "Gateway", width: "minmax(7rem, 1fr)", cell: (network) => network.gateway ?? "-" },
  { title: "MTU", width: "5rem", cell: (network) => network.mtu },
  { title: "Project", width: "minmax(7rem, 1fr)", cell: (network) => network.project },
  { title: "Created", width: "13rem", cell: (network) => <When at={network.created_at} /> },
  { title: "Trouble", width: "minmax(7rem, 2fr)", cell: (network) => <span title={network.reason}>{network.reason}</span> },
];

export function Networks(): ReactElement {
  const list = useList("network", {}, (query) => answered(client.GET("/api/v1/networks", { params: { query } })));
  return (
    <div className="nc-page">
      <Title headingLevel="h1">Networks</Title>
      <LiveTable kind="network" label="Networks" list={list} columns={NETWORKS} empty="There is no network." />
    </div>
  );
}

export function useImages(): { images: Image[]; error: unknown; loading: boolean } {
  const { state } = useWatchState();
  const query = useQuery({
    queryKey: ["images"],
    enabled: state !== "connecting",
    queryFn: () => answered(client.GET("/api/v1/images")),
  });
  return { images: query.data?.items ?? [], error: query.error, loading: query.isPending };
}

export function Images(): ReactElement {
  const { images, error, loading } = useImages();
  return (
    <div className="nc-page">
      <Title headingLevel="h1">Images</Title>
      {error !== null && <Refusal title="Images can't be shown" error={error} />}
      {loading && error === null && <p role="status">Asking the server …</p>}
      <ul className="nc-cards" aria-label="Images">
        {images.map((image) => (
          <li key={image.name}>
            <strong>{image.name}</strong> {image.description}
            <div>
              {image.kind}, {bytes(image.size_bytes)}
              {image.disk_bytes > 0 && `, a disk of ${bytes(image.disk_bytes)}`}; on {image.nodes.join(", ") || "no node"}
            </div>
            <code className="nc-command">{image.digest}</code>
          </li>
        ))}
      </ul>
    </div>
  );
}
