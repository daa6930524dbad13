/** All VMs that the reader may see. Filters and order are in the address, so that it can be shared. */
import { Alert, AlertActionCloseButton, Button, FormSelect, FormSelectOption, SearchInput, Title } from "@patternfly/react-core";
import { type ReactElement, useEffect, useMemo, useState } from "react";
import { Link, useSearchParams } from "wouter";
import { hasTags, setAddress } from "../address";
import { answered, client, type Me, type Vm, type VmState } from "../api";
import { VmActions } from "../components/act";
import { ColumnsButton, useColumns } from "../components/columns";
import { CsvButton } from "../components/csv";
import { BY_PROJECT, BY_TAG, FilterBar, useFilters } from "../components/filters";
import { VM_STATES, VmStateLabel, When } from "../components/labels";
import { type Column, LiveTable } from "../components/table";
import { Views } from "../components/views";
import { countVms, mib } from "../format";
import { useList } from "../list";
import { store } from "../live";
import { may } from "../session";
import { useSorting } from "../sorting";
import { m, t } from "../i18n";

const COLUMNS: readonly Column<Vm>[] = [
  { title: m("Name"), width: "minmax(12rem, 2fr)", sort: "name", cell: (vm) => <Link href={`/vms/${vm.id}`}>{vm.name}</Link>, text: (vm) => vm.name },
  {
    title: m("State"),
    width: "9rem",
    sort: "status.state",
    cell: (vm) => <VmStateLabel state={vm.status.state} deleting={vm.deleting} />,
    text: (vm) => (vm.deleting ? "deleting" : vm.status.state),
  },
  { title: m("Node"), width: "minmax(8rem, 1fr)", sort: "node", cell: (vm) => vm.node ?? "-" },
  { title: m("Project"), width: "minmax(7rem, 1fr)", sort: "project", cell: (vm) => vm.project },
  { title: m("Image"), width: "minmax(7rem, 1fr)", sort: "spec.image", cell: (vm) => vm.spec.image },
  { title: m("vCPUs"), width: "5rem", sort: "spec.vcpus", cell: (vm) => vm.spec.vcpus },
  { title: m("Memory"), width: "7rem", sort: "spec.memory_mib", cell: (vm) => mib(vm.spec.memory_mib) },
  { title: m("Created"), width: "13rem", sort: "created_at", cell: (vm) => <When at={vm.created_at} />, text: (vm) => vm.created_at },
  { title: m("Shown as"), width: "minmax(8rem, 1fr)", extra: true, cell: (vm) => <span title={vm.display_name}>{vm.display_name}</span>, text: (vm) => vm.display_name },
  { title: m("Description"), width: "minmax(9rem, 2fr)", extra: true, cell: (vm) => <span title={vm.description}>{vm.description}</span>, text: (vm) => vm.description },
  { title: m("Tags"), width: "minmax(8rem, 1fr)", extra: true, cell: (vm) => vm.tags.join(", ") },
  { title: m("Why"), width: "minmax(9rem, 2fr)", extra: true, cell: (vm) => <span title={vm.status.reason}>{vm.status.reason}</span>, text: (vm) => vm.status.reason },
  { title: m("Guest reports"), width: "minmax(9rem, 1fr)", extra: true, cell: (vm) => vm.status.guest?.addresses.join(", ") ?? "-" },
  { title: m("Networks"), width: "minmax(8rem, 1fr)", extra: true, cell: (vm) => (vm.spec.nics ?? []).map((nic) => [nic.network, nic.address].filter(Boolean).join(" ")).join(", ") || "-" },
  { title: m("Disk"), width: "7rem", extra: true, cell: (vm) => (vm.spec.disk_mib == null ? "-" : mib(vm.spec.disk_mib)) },
  { title: m("Firmware"), width: "6rem", extra: true, cell: (vm) => vm.spec.firmware ?? "-" },
  { title: m("High availability"), width: "9rem", extra: true, cell: (vm) => (vm.spec.ha ? t("on") : t("off")) },
  { title: m("Protected"), width: "6rem", extra: true, cell: (vm) => (vm.spec.protected ? t("yes") : t("no")) },
  { title: m("Newest backup"), width: "13rem", extra: true, cell: (vm) => (vm.backups.newest_at === null ? t("none") : <When at={vm.backups.newest_at} />), text: (vm) => vm.backups.newest_at ?? "" },
  { title: m("Runs with"), width: "6rem", extra: true, cell: (vm) => vm.status.accelerator },
  { title: m("Reboots"), width: "6rem", extra: true, cell: (vm) => vm.status.reboots },
  { title: m("Id"), width: "13rem", extra: true, cell: (vm) => vm.id },
];

const FILTERS = [{ name: "node", label: m("Node") }, BY_PROJECT, { name: "image", label: m("Image") }, BY_TAG] as const;

/** A change of one of these may move a VM within a list, or out of it. */
function moves(old: Vm, now: Vm): boolean {
  return (
    old.name !== now.name ||
    old.node !== now.node ||
    old.project !== now.project ||
    old.spec.image !== now.spec.image ||
    old.tags.join() !== now.tags.join() ||
    old.status.state !== now.status.state ||
    old.spec.vcpus !== now.spec.vcpus ||
    old.spec.memory_mib !== now.spec.memory_mib
  );
}

/** A selection that ends when one of its VMs leaves the list, or the list becomes another. */
function useSelection(keys: readonly string[], list: string): {
  selected: ReadonlySet<string>;
  set: (keys: Iterable<string>) => void;
  cleared: string | null;
  dismiss: () => void;
} {
  const [selected, setSelected] = useState<ReadonlySet<string>>(new Set());
  const [cleared, setCleared] = useState<string | null>(null);
  useEffect(() => {
    const here = new Set(keys);
    if ([...selected].some((key) => !here.has(key))) {
      setCleared(t("The list changed, so the selection of {vms} was cleared.", { vms: countVms(selected.size) }));
      setSelected(new Set());
    }
  }, [keys, selected]);
  useEffect(() => setSelected(new Set()), [list]);
  const set = (chosen: Iterable<string>): void => {
    setCleared(null);
    setSelected(new Set(chosen));
  };
  return { selected, set, cleared, dismiss: () => setCleared(null) };
}

export function Vms({ me }: { me: Me }): ReactElement {
  const [address] = useSearchParams();
  const own = useColumns("vm", COLUMNS);
  const begins = address.get("name") ?? "";
  const state = address.get("state") ?? "";
  const sorting = useSorting("sort", "name", COLUMNS);
  const sort = sorting.by;
  const change = (name: string, value: string): void => setAddress({ [name]: value });
  const more = useFilters(FILTERS);
  const filters = { ...(begins && { name: `${begins}*` }), ...(state && { state: state as VmState }), ...more, sort };
  const list = useList("vm", filters, (query) => answered(client.GET("/api/v1/vms", { params: { query: { ...filters, ...query } } })), {
    moves,
    belongs: (vm) => vm.name.startsWith(begins) && (state === "" || vm.status.state === state) && (more.node === undefined || vm.node === more.node) && (more.image === undefined || vm.spec.image === more.image) && hasTags(vm.tags, more.tag),
  });
  const { selected, set, cleared, dismiss } = useSelection(list.keys, JSON.stringify(filters));
  const vms = useMemo(() => [...selected].map((key) => store.get("vm", key)).filter((vm) => vm !== undefined), [selected]);
  const loaded = (): Vm[] => list.keys.map((key) => store.get("vm", key)).filter((vm) => vm !== undefined);
  const toggle = (key: string): void => set(selected.has(key) ? [...selected].filter((other) => other !== key) : [...selected, key]);
  const writes = vms.every((vm) => may(me, "write", vm.project));
  return (
    <div className="nc-page">
      <div className="nc-bar">
        <Title headingLevel="h1">{t("Virtual machines")}</Title>
        <span role="status">{list.more ? t("{count} loaded, and more", { count: list.keys.length }) : countVms(list.keys.length)}</span>
        <span className="nc-grow" />
        <Button component={(props) => <Link {...props} href="/vms/create" />}>{t("Create a VM")}</Button>
      </div>
      <div className="nc-bar">
        <SearchInput
          className="nc-filter"
          aria-label={t("Name begins with")}
          placeholder={t("Name begins with")}
          value={begins}
          onChange={(_, value) => change("name", value.trim())}
          onClear={() => change("name", "")}
        />
        <FormSelect className="nc-filter" aria-label={t("State")} value={state} onChange={(_, value) => change("state", value)}>
          <FormSelectOption value="" label={t("Any state")} />
          {VM_STATES.map((name) => (
            <FormSelectOption key={name} value={name} label={name} />
          ))}
        </FormSelect>
        <FilterBar title={m("Virtual machines")} filters={FILTERS} />
        <Views page="vms" />
        <ColumnsButton title={m("Virtual machines")} columns={own} />
        <CsvButton title={m("Virtual machines")} columns={own.shown} objects={loaded} />
        <span>{t("{vms} selected", { vms: countVms(selected.size) })}</span>
        <VmActions vms={vms} forbidden={writes ? null : m("Your role does not allow it.")} done={() => set([])} />
      </div>
      {cleared !== null && <Alert isInline variant="info" title={cleared} actionClose={<AlertActionCloseButton onClose={dismiss} />} />}
      <LiveTable
        kind="vm"
        label={t("Virtual machines")}
        list={list}
        columns={own.shown}
        empty={t("No VM is like that.")}
        sorting={sorting}
        selecting={{ selected, toggle, all: (keys) => set(keys) }}
      />
    </div>
  );
}
