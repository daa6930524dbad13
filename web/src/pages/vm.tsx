/** One VM: what it is, what can be done with it, its consoles, snapshots and events. */
import {
  Alert,
  Breadcrumb,
  BreadcrumbItem,
  Button,
  DescriptionList,
  DescriptionListDescription,
  DescriptionListGroup,
  DescriptionListTerm,
  Label,
  Title,
} from "@patternfly/react-core";
import { useQuery } from "@tanstack/react-query";
import { lazy, type ReactElement, type ReactNode, Suspense, useEffect, useState } from "react";
import { Link } from "wouter";
import { answered, client, type Me, type Vm } from "../api";
import { backupState, isLate } from "../backup_state";
import { VmLoad } from "../charts/load";
import { VmActions } from "../components/act";
import { VmStateLabel, When } from "../components/labels";
import { Refusal } from "../components/notices";
import { bytes, memory, processors } from "../format";
import { store, useConnection, useObject } from "../live";
import { may } from "../session";
import { EventTable } from "./events";
import { MigrationProgress } from "./migrations";
import { MigrateVm } from "./migrate";
import { useVm } from "./vm_object";
import { GuestView, Interfaces, MoreActions } from "./vm_more";
import { Snapshots } from "./vm_snapshots";
import { m, t } from "../i18n";

const BACKUP_AGE_MS = 30_000;
const SerialConsole = lazy(() => import("../console/serial"));
const DisplayConsole = lazy(() => import("../console/display"));

export function VmPage({ id, me }: { id: string; me: Me }): ReactElement {
  const { vm, error } = useVm(id);
  const [lastName, setLastName] = useState("");
  if (vm !== undefined && vm.name !== lastName) setLastName(vm.name);
  if (vm === undefined) {
    if (lastName !== "") return <Alert isInline variant="info" title={t("VM {name} has been deleted.", { name: lastName })} />;
    return error === null ? <p role="status">{t("Asking the server …")}</p> : <Refusal title={t("This VM can't be shown")} error={error} />;
  }
  const writes = may(me, "write", vm.project);
  return (
    <div className="nc-page">
      <Breadcrumb>
        <BreadcrumbItem render={() => <Link href="/vms">{t("Virtual machines")}</Link>} />
        <BreadcrumbItem isActive>{vm.name}</BreadcrumbItem>
      </Breadcrumb>
      <div className="nc-bar">
        <Title headingLevel="h1">{vm.name}</Title>
        <VmStateLabel state={vm.status.state} deleting={vm.deleting} />
        <span className="nc-grow" />
        <VmActions vms={[vm]} forbidden={writes ? null : m("Your role does not allow it.")} />
      </div>
      {vm.status.reason !== "" && <Alert isInline variant="warning" title={vm.status.reason} />}
      {vm.unreconciled != null && <Alert isInline variant="danger" title={vm.unreconciled} />}
      {vm.migration !== null && <RunningMigration id={vm.migration} me={me} />}
      <Summary vm={vm} />
      <MoreActions vm={vm} me={me} />
      {writes && <Consoles vm={vm} />}
      <VmLoad vm={vm} />
      <Interfaces vm={vm} me={me} />
      <Snapshots vm={vm} me={me} />
      {writes && <GuestView vm={vm} me={me} />}
      {writes && vm.migration === null && <MigrateVm vm={vm} />}
      <Title headingLevel="h2">{t("Events")}</Title>
      <EventTable object={vm.id} />
    </div>
  );
}

function RunningMigration({ id, me }: { id: string; me: Me }): ReactElement | null {
  const state = useConnection();
  useQuery({
    queryKey: ["object", "migration", id],
    enabled: state !== "connecting",
    queryFn: async () =>
      await store.asking(async () => {
        const asOf = store.revision;
        const migration = await answered(client.GET("/api/v1/migrations/{id}", { params: { path: { id } } }));
        store.admit("migration", [migration], Math.max(asOf, migration.revision));
        return migration.id;
      }),
  });
  const migration = useObject("migration", id);
  return migration === undefined ? null : <MigrationProgress migration={migration} me={me} />;
}

function Item({ term, children }: { term: string; children: ReactNode }): ReactElement {
  return (
    <DescriptionListGroup>
      <DescriptionListTerm>{t(term)}</DescriptionListTerm>
      <DescriptionListDescription>{children}</DescriptionListDescription>
    </DescriptionListGroup>
  );
}

function Summary({ vm }: { vm: Vm }): ReactElement {
  const { spec, status } = vm;
  const addresses = status.guest?.addresses ?? [];
  const networks = (spec.nics ?? []).map((nic) => [nic.network, nic.address].filter(Boolean).join(" "));
  return (
    <DescriptionList isHorizontal columnModifier={{ default: "1Col", lg: "2Col", "2xl": "3Col" }} aria-label={t("Summary")}>
      <Item term={m("Node")}>{vm.node ?? t("on no node")}</Item>
      <Item term={m("Project")}>{vm.project}</Item>
      <Item term={m("Image")}>{spec.image}</Item>
      <Item term={m("Processors")}>{processors(spec)}</Item>
      <Item term={m("Memory")}>{memory(spec)}</Item>
      <Item term={m("Disk")}>{spec.disk_mib == null ? t("as the image's") : bytes(spec.disk_mib * 1024 * 1024)}</Item>
      <Item term={m("Firmware")}>{spec.firmware}</Item>
      <Item term={m("Networks")}>{networks.length === 0 ? (spec.address ?? t("none")) : networks.join(", ")}</Item>
      <Item term={m("Guest reports")}>{addresses.length === 0 ? t("nothing") : addresses.join(", ")}</Item>
      <Item term={m("High availability")}>{spec.ha ? t("on") : t("off")}</Item>
      <Item term={m("Protected")}>{spec.protected ? t("yes") : t("no")}</Item>
      <Item term={m("Newest backup")}>
        <NewestBackup vm={vm} />
      </Item>
      <Item term={m("Reboots")}>{status.reboots}</Item>
      <Item term={m("Created")}>
        <When at={vm.created_at} />
      </Item>
      <Item term={m("Revision")}>{vm.revision}</Item>
      <Item term={m("Id")}>{vm.id}</Item>
    </DescriptionList>
  );
}

function NewestBackup({ vm }: { vm: Vm }): ReactElement {
  const now_ms = useNow(BACKUP_AGE_MS);
  const { newest_at, policies } = vm.backups;
  const late = isLate(vm.backups, now_ms);
  return (
    <>
      <Link href={`/backups?vm=${vm.id}`}>{newest_at === null ? t("none") : <When at={newest_at} />}</Link>
      {policies.length > 0 && ` ${t("by {policies}", { policies: policies.join(", ") })}`}{" "}
      <Label color={late === null ? "grey" : late ? "red" : "green"}>{backupState(vm.backups, now_ms)}</Label>
    </>
  );
}

/** The time in milliseconds since 1970, anew after each `every_ms`. */
function useNow(every_ms: number): number {
  const [now_ms, setNow] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), every_ms);
    return () => clearInterval(timer);
  }, [every_ms]);
  return now_ms;
}

/** Opened again, it is the same window. */
function openWindow(vm: Vm, kind: "serial" | "display"): void {
  window.open(`/ui/vms/${vm.id}/console/${kind}`, `novacron-${kind}-${vm.id}`, "popup,width=1100,height=800");
}

function Consoles({ vm }: { vm: Vm }): ReactElement {
  const [serial, setSerial] = useState(false);
  const [display, setDisplay] = useState(false);
  const hasDisplay = vm.spec.display !== "none";
  return (
    <>
      <Title headingLevel="h2">{t("Consoles")}</Title>
      <div className="nc-bar">
        <Button variant="secondary" aria-pressed={serial} onClick={() => setSerial(!serial)}>
          {serial ? t("Close the serial console") : t("Open the serial console")}
        </Button>
        {hasDisplay && (
          <Button variant="secondary" aria-pressed={display} onClick={() => setDisplay(!display)}>
            {display ? t("Close the display") : t("Open the display")}
          </Button>
        )}
        <Button variant="link" onClick={() => openWindow(vm, "serial")}>
          {t("Serial console in its own window")}
        </Button>
        {hasDisplay && (
          <Button variant="link" onClick={() => openWindow(vm, "display")}>
            {t("Display in its own window")}
          </Button>
        )}
      </div>
      <Suspense fallback={<p role="status">{t("Loading the console …")}</p>}>
        <div className="nc-consoles">
          {serial && <SerialConsole vm={vm.id} name={vm.name} />}
          {display && <DisplayConsole vm={vm.id} name={vm.name} />}
        </div>
      </Suspense>
    </>
  );
}
