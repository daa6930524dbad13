/** The files in a backup: its file systems, their directories, and single files to download. Their names come from a guest, and may be anything. */
import { Alert, Breadcrumb, BreadcrumbItem, Button, Progress, SearchInput, Title, Tooltip } from "@patternfly/react-core";
import { useQuery } from "@tanstack/react-query";
import { type ReactElement, useEffect, useRef, useState } from "react";
import { Link, useLocation, useSearchParams } from "wouter";
import { answered, type Backup, client, type Me, type Schemas } from "../api";
import { When } from "../components/labels";
import { Refusal, refused, said } from "../components/notices";
import { Rows } from "../components/plain";
import type { Column } from "../columns";
import { bytes, percent, time } from "../format";
import { m, t } from "../i18n";
import { nameForDownload, parents, visible, whole, within } from "../pieces";
import { lookRefusal } from "./backup_look";

type Entry = Schemas["BackupEntry"];
type FileSystem = Schemas["BackupFileSystem"];

const MIB = 1024 * 1024;
const FILE_BYTES_MAX = 1024 * MIB;
/** So many rows of a directory are shown at once; those after them are found by their names. */
const ROWS_MAX = 500;

const addressOf = (backup: string, system: string, path: string): string => `/backups/${encodeURIComponent(backup)}/files?${new URLSearchParams({ system, path }).toString()}`;

export default function BackupFiles({ id, me }: { id: string; me: Me }): ReactElement {
  const query = useQuery({ queryKey: ["backup-of-files", id], queryFn: () => answered(client.GET("/api/v1/backups/{id}", { params: { path: { id } } })) });
  return (
    <div className="nc-page">
      <Breadcrumb>
        <BreadcrumbItem render={() => <Link href="/backups">{t("Backups")}</Link>} />
        <BreadcrumbItem isActive>{id}</BreadcrumbItem>
      </Breadcrumb>
      <Title headingLevel="h1">{query.data === undefined ? t("Files of a backup") : t("Files of the backup of {vm}, {time}", { vm: query.data.vm_name, time: time(query.data.created_at) })}</Title>
      {query.isPending && <p role="status">{t("Asking the server …")}</p>}
      {query.error !== null && <Refusal title={t("This backup can't be shown")} error={query.error} />}
      {query.data !== undefined && <Contents backup={query.data} me={me} />}
    </div>
  );
}

function Contents({ backup, me }: { backup: Backup; me: Me }): ReactElement {
  const refusal = lookRefusal(me, backup);
  const [address] = useSearchParams();
  const query = useQuery({
    queryKey: ["backup-file-systems", backup.id],
    enabled: refusal === null,
    queryFn: () => answered(client.GET("/api/v1/backups/{id}/file-systems", { params: { path: { id: backup.id } } })),
  });
  if (refusal !== null) return <Alert isInline variant="info" title={t(refusal)} />;
  if (query.error !== null) return <Refusal title={t("{what} can't be shown", { what: t("File systems") })} error={query.error} />;
  if (query.data === undefined) return <p role="status">{t("A node opens the backup, which can take half a minute …")}</p>;
  const systems = query.data;
  const chosen = address.get("system") ?? (systems.length === 1 ? systems[0]?.name : undefined);
  const columns: readonly Column<FileSystem>[] = [
    { title: m("File system"), width: "minmax(8rem, 1fr)", cell: ({ name }) => <Link href={addressOf(backup.id, name, "/")}>{visible(name)}</Link> },
    { title: m("Kind"), width: "7rem", cell: ({ kind }) => visible(kind) },
    { title: m("Label"), width: "minmax(8rem, 1fr)", cell: ({ label }) => <bdi>{visible(label)}</bdi> },
    { title: m("Size"), width: "7rem", cell: ({ size_bytes }) => (size_bytes > 0 ? bytes(size_bytes) : "-") },
    { title: m("UUID"), width: "minmax(12rem, 1fr)", cell: ({ uuid }) => visible(uuid) },
  ];
  return (
    <>
      {systems.length === 0 && <p>{t("No file system was recognised: the disk may be empty, or encrypted by the guest.")}</p>}
      {systems.length > 0 && <Rows title={m("File systems")} columns={columns} items={systems} keyOf={({ name }) => name} />}
      {chosen !== undefined && <Directory key={chosen} backup={backup} system={chosen} path={address.get("path") ?? "/"} />}
    </>
  );
}

/** Directories first, then by name. */
function ordered(entries: readonly Entry[], wanted: string): Entry[] {
  return entries
    .filter(({ name }) => name.toLowerCase().includes(wanted.toLowerCase()))
    .sort((one, other) => Number(other.is_directory) - Number(one.is_directory) || one.name.localeCompare(other.name));
}

function Directory({ backup, system, path }: { backup: Backup; system: string; path: string }): ReactElement {
  const [wanted, setWanted] = useState("");
  const [, go] = useLocation();
  const { download, running } = useDownload(backup, system);
  useEffect(() => setWanted(""), [path]);
  const query = useQuery({
    queryKey: ["backup-files", backup.id, system, path],
    queryFn: () => answered(client.GET("/api/v1/backups/{id}/files", { params: { path: { id: backup.id }, query: { file_system: system, path } } })),
  });
  const entries = ordered(query.data?.entries ?? [], wanted);
  const rest = entries.length - ROWS_MAX;
  const columns: readonly Column<Entry>[] = [
    { title: m("Name"), width: "minmax(14rem, 3fr)", cell: (entry) => <Name entry={entry} href={addressOf(backup.id, system, within(path, entry.name))} /> },
    { title: m("Size"), width: "8rem", cell: ({ is_directory, size_bytes }) => (is_directory ? "-" : bytes(size_bytes)) },
    { title: m("Changed"), width: "13rem", cell: ({ modified_at }) => (modified_at === null ? "-" : <When at={modified_at} />) },
    { title: "", width: "9rem", cell: (entry) => !entry.is_directory && <DownloadButton entry={entry} isBusy={running !== null} download={() => void download(within(path, entry.name), entry)} /> },
  ];
  const title = t("Files in {path}", { path: visible(path) });
  return (
    <section className="nc-section" aria-label={title}>
      <Breadcrumb aria-label={t("Directories")}>
        <BreadcrumbItem isActive>{visible(system)}</BreadcrumbItem>
        {parents(path).map((parent) => (
          <BreadcrumbItem key={parent.path} render={() => <Link href={addressOf(backup.id, system, parent.path)}>{visible(parent.name)}</Link>} />
        ))}
      </Breadcrumb>
      <div className="nc-bar">
        <Title headingLevel="h2">{title}</Title>
        <span className="nc-grow" />
        <Button size="sm" variant="secondary" isAriaDisabled={path === "/"} onClick={() => go(addressOf(backup.id, system, parents(path).at(-2)?.path ?? "/"))}>
          {t("Directory above")}
        </Button>
        <SearchInput className="nc-filter" aria-label={t("Name contains")} placeholder={t("Name contains")} value={wanted} onChange={(_, value) => setWanted(value)} onClear={() => setWanted("")} />
      </div>
      {running !== null && (
        <div className="nc-bar">
          <Progress className="nc-grow" aria-label={t("Download")} title={t("{name}: {bytes}", { name: visible(running.name), bytes: bytes(running.bytes) })} value={Math.round(percent(running.bytes, running.size))} />
          <Button variant="secondary" size="sm" onClick={running.giveUp}>
            {t("Give up")}
          </Button>
        </div>
      )}
      {query.data?.truncated === true && <Alert isInline variant="warning" title={t("The directory has more files than are listed here.")} />}
      {query.error !== null && <Refusal title={t("{what} can't be shown", { what: title })} error={query.error} />}
      {query.isPending && <p role="status">{t("Asking the server …")}</p>}
      {query.isSuccess && entries.length === 0 && <p>{t("There is no such file here.")}</p>}
      {entries.length > 0 && <Rows title={title} columns={columns} items={entries.slice(0, ROWS_MAX)} keyOf={({ name }) => name} />}
      {rest > 0 && <p>{t("{count} more: type a part of a name above to find them.", { count: rest })}</p>}
      <details>
        <summary>{t("The same as a command")}</summary>
        <code className="nc-command">{`novacron backup files ${backup.id} ${quoted(`${system}:${path}`)}`}</code>
      </details>
    </section>
  );
}

/** As a shell takes it. */
function quoted(text: string): string {
  return `'${visible(text).replaceAll("'", "'\\''")}'`;
}

function Name({ entry: { name, is_directory }, href }: { entry: Entry; href: string }): ReactElement {
  const shown = <bdi title={visible(name)}>{visible(name)}</bdi>;
  return is_directory ? <Link href={href}>{shown}/</Link> : shown;
}

function DownloadButton({ entry, isBusy, download }: { entry: Entry; isBusy: boolean; download: () => void }): ReactElement {
  const why = entry.size_bytes > FILE_BYTES_MAX ? t("Browsers keep what they fetch in memory: fetch files of more than {size} with novacron backup pull.", { size: bytes(FILE_BYTES_MAX) }) : isBusy ? t("Another file is being fetched.") : null;
  const button = (
    <Button size="sm" variant="secondary" isAriaDisabled={why !== null} aria-label={`${t("Download")}: ${visible(entry.name)}`} onClick={download}>
      {t("Download")}
    </Button>
  );
  return why === null ? button : <Tooltip content={why}>{button}</Tooltip>;
}

interface Running {
  name: string;
  size: number;
  bytes: number;
  giveUp: () => void;
}

/** Fetches one file at a time; it ends with its page. */
function useDownload(backup: Backup, system: string): { download: (path: string, entry: Entry) => Promise<void>; running: Running | null } {
  const [running, setRunning] = useState<Running | null>(null);
  const control = useRef<AbortController | null>(null);
  useEffect(() => () => control.current?.abort(), []);
  const download = async (path: string, { name, size_bytes }: Entry): Promise<void> => {
    const aborts = new AbortController();
    control.current = aborts;
    const now: Running = { name, size: size_bytes, bytes: 0, giveUp: () => aborts.abort() };
    setRunning(now);
    const read = (offset: number): Promise<Schemas["FilePiece"]> =>
      answered(client.GET("/api/v1/backups/{id}/file", { params: { path: { id: backup.id }, query: { file_system: system, path, offset } }, signal: aborts.signal }));
    try {
      save(await whole({ read, bytesMax: FILE_BYTES_MAX, progress: (got) => setRunning({ ...now, bytes: got }), signal: aborts.signal }), name);
    } catch (error) {
      if (aborts.signal.aborted) said(t("{name}: given up", { name: visible(name) }), "info");
      else refused(t("{name} can't be fetched", { name: visible(name) }), error);
    } finally {
      setRunning(null);
    }
  };
  return { download, running };
}

function save(blob: Blob, name: string): void {
  const address = URL.createObjectURL(blob);
  const link = document.createElement("a");
  link.href = address;
  link.download = nameForDownload(name);
  link.click();
  URL.revokeObjectURL(address);
}
