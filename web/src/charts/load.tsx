/** What a VM or a node uses: hour by hour for weeks, and, for a VM, as it is now. */
import { Button, Title, ToggleGroup, ToggleGroupItem } from "@patternfly/react-core";
import { useQuery } from "@tanstack/react-query";
import { lazy, type ReactElement, Suspense, useEffect, useMemo, useState } from "react";
import { answered, client, type Schemas, type Vm } from "../api";
import { Refusal } from "../components/notices";
import { bytes } from "../format";
import { m, t } from "../i18n";
import { type Counter, ofHours, rates, type Series, withSample } from "./series";

const Chart = lazy(() => import("./chart"));

type Used = Schemas["UsageOfVm"];
const LOOK_MS = 3_000;

function processors(value: number): string {
  return value.toFixed(2);
}

/** Hours of the past. */
export function PastLoad({ hours, empty }: { hours: readonly Schemas["PastHour"][]; empty: string }): ReactElement {
  const { times, series } = useMemo(() => {
    const known = ofHours(hours);
    const lines: Series[] = [
      { label: m("Busiest half minute"), values: known.peaks },
      { label: m("On average"), values: known.means },
    ];
    return { times: known.times, series: lines };
  }, [hours]);
  if (hours.length === 0) return <p>{t(empty)}</p>;
  return (
    <Suspense fallback={<p role="status">{t("Loading the chart …")}</p>}>
      <Chart title={m("Processors in use, by hour")} times={times} series={series} format={processors} />
    </Suspense>
  );
}

function HoursOfVm({ vm, days }: { vm: Vm; days: number }): ReactElement {
  const query = useQuery({
    queryKey: ["plain", "load", "vm", vm.id, days],
    queryFn: () => answered(client.GET("/api/v1/vms/{ref}/load", { params: { path: { ref: vm.id }, query: { days } } })),
  });
  if (query.error !== null) return <Refusal title={t("{what} can't be shown", { what: t("Load") })} error={query.error} />;
  if (query.data === undefined) return <p role="status">{t("Asking the server …")}</p>;
  return <PastLoad hours={query.data.items} empty={m("No hour of its load is known yet: one is, soon after it has ended.")} />;
}

/** The only thing that a page asks for again and again, and only while somebody looks at it: nodes do not report it by themselves. */
function Now({ vm }: { vm: Vm }): ReactElement {
  const [looks, setLooks] = useState<readonly Used[]>([]);
  const query = useQuery({
    queryKey: ["usage", vm.id],
    queryFn: async () => (await answered(client.GET("/api/v1/vm-usage", { params: { query: { vm: vm.id } } }))).items[0] ?? null,
    refetchInterval: LOOK_MS,
    gcTime: 0,
  });
  const newest = query.data;
  useEffect(() => {
    if (newest == null) return;
    setLooks((before) => (newest.at_s > (before[before.length - 1]?.at_s ?? 0) ? withSample(before, newest) : before));
  }, [newest]);
  const drawn = useMemo(() => {
    const rate = (label: string, counter: Counter): Series => ({ label, values: rates(looks, counter) });
    return {
      times: looks.map((look) => look.at_s),
      processors: [rate(m("In use"), "cpu_s")],
      memory: [
        { label: m("Of the host"), values: looks.map((look) => look.memory_resident_bytes ?? null) },
        { label: m("Of the guest"), values: looks.map(({ memory_bytes, memory_available_bytes }) => (memory_bytes == null || memory_available_bytes == null ? null : memory_bytes - memory_available_bytes)) },
      ],
      disks: [rate(m("Read a second"), "disk_read_bytes"), rate(m("Written a second"), "disk_written_bytes")],
      network: [rate(m("Received a second"), "network_received_bytes"), rate(m("Sent a second"), "network_sent_bytes")],
    };
  }, [looks]);
  const each = (value: number): string => `${bytes(value)}/s`;
  return (
    <>
      {query.error !== null && <Refusal title={t("{what} can't be shown", { what: t("Load") })} error={query.error} />}
      {newest === null && <p role="status">{t("Its node does not say what it uses: does the VM run?")}</p>}
      {looks.length < 2 && newest !== null && <p role="status">{t("Two looks make a rate …")}</p>}
      {looks.length >= 2 && (
        <Suspense fallback={<p role="status">{t("Loading the chart …")}</p>}>
          <div className="nc-cards">
            <Chart title={m("Processors")} times={drawn.times} series={drawn.processors} format={processors} />
            <Chart title={m("Memory")} times={drawn.times} series={drawn.memory} format={bytes} />
            <Chart title={m("Disks")} times={drawn.times} series={drawn.disks} format={each} />
            <Chart title={m("Network")} times={drawn.times} series={drawn.network} format={each} />
          </div>
        </Suspense>
      )}
    </>
  );
}

const SPANS = [
  [0, m("Now")],
  [1, m("A day")],
  [14, m("Two weeks")],
  [60, m("Two months")],
] as const;

export function VmLoad({ vm }: { vm: Vm }): ReactElement {
  const [days, setDays] = useState<number | null>(null);
  return (
    <section className="nc-section" aria-label={t("Load")}>
      <div className="nc-bar">
        <Title headingLevel="h2">{t("Load")}</Title>
        <ToggleGroup aria-label={t("How far back")} isCompact>
          {SPANS.map(([span, label]) => (
            <ToggleGroupItem key={span} text={t(label)} isSelected={days === span} onChange={() => setDays(span)} />
          ))}
        </ToggleGroup>
        {days !== null && (
          <Button variant="link" size="sm" onClick={() => setDays(null)}>
            {t("Hide the charts")}
          </Button>
        )}
      </div>
      {days === 0 && <Now vm={vm} />}
      {days !== null && days > 0 && <HoursOfVm vm={vm} days={days} />}
    </section>
  );
}
