/** A migration as it happens: bytes, passes, and what needed not be sent, over time. */
import { lazy, type ReactElement, Suspense, useMemo, useState } from "react";
import { Button } from "@patternfly/react-core";
import type { Migration, Schemas } from "../api";
import { bytes } from "../format";
import { m, t } from "../i18n";
import { type ProgressAt, useProgress } from "./progress";
import type { Series } from "./series";

const Chart = lazy(() => import("./chart"));

type Saving = keyof Schemas["Savings"];
const SAVINGS: Record<Saving, string> = {
  zero: m("Zero pages"),
  session: m("Sent before"),
  image: m("In the image"),
  sibling: m("In another VM"),
  checkpoint: m("In a checkpoint"),
  difference: m("Differences"),
  compression: m("Compression"),
};

type Of = (progress: Schemas["Progress"]) => number;

function series(samples: readonly ProgressAt[], lines: readonly (readonly [string, Of])[]): Series[] {
  return lines.map(([label, of]) => ({ label, values: samples.map(({ progress }) => of(progress)) }));
}

function Charts({ migration }: { migration: Migration }): ReactElement {
  const samples = useProgress(migration.id);
  const drawn = useMemo(
    () => ({
      times: samples.map(({ at_s }) => at_s),
      bytes: series(samples, [
        [m("Sent"), (one) => one.wire_bytes],
        [m("Memory left"), (one) => one.remaining_bytes],
        [m("Disks left"), (one) => one.disk_remaining_bytes],
      ]),
      rates: series(samples, [
        [m("Sent a second"), (one) => one.rate_bytes_per_s],
        [m("Written by the guest a second"), (one) => one.dirty_bytes_per_s],
      ]),
      passes: series(samples, [[m("Passes"), (one) => one.passes]]),
      savings: series(samples, (Object.entries(SAVINGS) as [Saving, string][]).map(([kind, label]) => [label, (one: Schemas["Progress"]) => one.savings[kind] ?? 0] as const)),
    }),
    [samples],
  );
  if (samples.length === 0) return <p role="status">{t("No progress has been reported since this page was opened.")}</p>;
  return (
    <Suspense fallback={<p role="status">{t("Loading the chart …")}</p>}>
      <div className="nc-cards">
        <Chart title={m("Bytes")} times={drawn.times} series={drawn.bytes} format={bytes} />
        <Chart title={m("Rates")} times={drawn.times} series={drawn.rates} format={(value) => `${bytes(value)}/s`} />
        <Chart title={m("Passes over memory")} times={drawn.times} series={drawn.passes} format={(value) => value.toFixed(0)} />
        <Chart title={m("Not sent, by kind")} times={drawn.times} series={drawn.savings} format={bytes} />
      </div>
    </Suspense>
  );
}

export function MigrationCharts({ migration }: { migration: Migration }): ReactElement {
  const [open, setOpen] = useState(false);
  return (
    <>
      <Button variant="link" size="sm" isInline aria-expanded={open} onClick={() => setOpen(!open)}>
        {open ? t("Hide the charts") : t("Show it over time")}
      </Button>
      {open && <Charts migration={migration} />}
    </>
  );
}
