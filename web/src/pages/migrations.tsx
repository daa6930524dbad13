/** Migrations as they happen. */
import { Button, Progress } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { Link } from "wouter";
import { answered, client, type Me, type Migration } from "../api";
import { MigrationCharts } from "../charts/migration";
import { BY_PROJECT, FilterBar, useFilters } from "../components/filters";
import { MigrationLabel, When } from "../components/labels";
import { isUnderWay } from "../components/phases";
import { refused, said } from "../components/notices";
import { LiveList } from "../components/live_list";
import type { Column } from "../components/table";
import { bytes, duration, percent } from "../format";
import { useList } from "../list";
import { may } from "../session";
import { movesBy, useSorting } from "../sorting";
import { m, t } from "../i18n";

/** How much of memory and disks is there already. */
export function progressOf({ phase, progress }: Migration): number {
  if (phase === "completed") return 100;
  const whole = progress.total_bytes + progress.disk_bytes;
  return percent(whole - progress.remaining_bytes - progress.disk_remaining_bytes, whole);
}

async function abort(migration: Migration): Promise<void> {
  try {
    await answered(client.POST("/api/v1/migrations/{id}/actions/abort", { params: { path: { id: migration.id } } }));
    said(t("The migration of {name} is being aborted", { name: migration.vm_name }));
  } catch (error) {
    refused(t("The migration of {name} goes on", { name: migration.vm_name }), error);
  }
}

function savings({ progress }: Migration): string {
  const kinds = Object.entries(progress.savings).filter(([, saved]) => saved > 0);
  return kinds.map(([kind, saved]) => `${kind} ${bytes(saved)}`).join(", ");
}

export function MigrationProgress({ migration, me }: { migration: Migration; me: Me }): ReactElement {
  const { progress } = migration;
  return (
    <section aria-label={t("Migration of {name}", { name: migration.vm_name })}>
      <div className="nc-bar">
        <MigrationLabel phase={migration.phase} />
        <span>
          {migration.source} → {migration.target}
        </span>
        <span>{t("{bytes} sent", { bytes: bytes(progress.wire_bytes) })}</span>
        <span>{`${bytes(progress.rate_bytes_per_s)}/s`}</span>
        <span>{t("pass {number}", { number: progress.passes })}</span>
        <span>{duration(progress.elapsed_s)}</span>
        {progress.forecast !== null && progress.forecast.converges && <span>{t("about {time} in all", { time: duration(progress.forecast.total_s) })}</span>}
        {isUnderWay(migration.phase) && may(me, "write", migration.project) && (
          <Button variant="danger" size="sm" onClick={() => void abort(migration)}>
            {t("Abort")}
          </Button>
        )}
      </div>
      <Progress aria-label={t("Progress of the migration")} value={Math.round(progressOf(migration))} />
      {migration.waits_for !== null && <p>{t("Waits: {reason}", { reason: migration.waits_for })}</p>}
      {migration.error !== null && <p>{migration.error}</p>}
      {savings(migration) !== "" && <p>{t("Not sent: {savings}", { savings: savings(migration) })}</p>}
      <MigrationCharts migration={migration} />
    </section>
  );
}

function columns(me: Me): readonly Column<Migration>[] {
  return [
    { title: m("VM"), width: "minmax(10rem, 2fr)", sort: "vm_name", cell: (one) => <Link href={`/vms/${one.vm}`}>{one.vm_name}</Link> },
    { title: m("Phase"), width: "8rem", sort: "phase", cell: (one) => <MigrationLabel phase={one.phase} /> },
    { title: m("From"), width: "minmax(7rem, 1fr)", sort: "source", cell: (one) => one.source },
    { title: m("To"), width: "minmax(7rem, 1fr)", sort: "target", cell: (one) => one.target },
    { title: m("There"), width: "5rem", cell: (one) => `${Math.round(progressOf(one))} %` },
    { title: m("Sent"), width: "7rem", cell: (one) => bytes(one.progress.wire_bytes) },
    { title: m("Stood still"), width: "7rem", cell: (one) => (one.progress.downtime_ms === null ? "-" : `${Math.round(one.progress.downtime_ms)} ms`) },
    { title: m("Began"), width: "13rem", sort: "created_at", cell: (one) => <When at={one.created_at} /> },
    {
      title: "",
      width: "6rem",
      cell: (one) =>
        isUnderWay(one.phase) && may(me, "write", one.project) ? (
          <Button variant="danger" size="sm" onClick={() => void abort(one)}>
            {t("Abort")}
          </Button>
        ) : (
          <span title={one.error ?? ""}>{one.error}</span>
        ),
    },
  ];
}

const FILTERS = [{ name: "vm", label: m("VM") }, BY_PROJECT] as const;

export function Migrations({ me }: { me: Me }): ReactElement {
  const shown = columns(me);
  const sorting = useSorting("sort", "-created_at", shown);
  const sort = sorting.by;
  const filters = useFilters(FILTERS);
  const list = useList("migration", { sort, ...filters }, (query) => answered(client.GET("/api/v1/migrations", { params: { query: { sort, ...filters, ...query } } })), { moves: movesBy(sort) });
  return (
    <div className="nc-page">
      <LiveList kind="migration" title={m("Migrations")} list={list} sorting={sorting} columns={shown} empty={m("No VM has moved yet.")}>
        <FilterBar title={m("Migrations")} filters={FILTERS} />
      </LiveList>
    </div>
  );
}
