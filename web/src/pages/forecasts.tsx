/** What is foreseen of load and room, and how good that was. */
import type { ReactElement } from "react";
import { Link } from "wouter";
import { answered, client, type Schemas } from "../api";
import { PlainList } from "../components/plain";
import { mib, time } from "../format";
import { m, t } from "../i18n";

type OfNode = Schemas["ForecastOfNode"];
type OfVm = Schemas["ForecastOfVm"];

export function Forecasts(): ReactElement {
  return (
    <div className="nc-page">
      <PlainList
        level="h1"
        title={m("Capacity")}
        name={["capacity"]}
        fetchPage={(cursor) => answered(client.GET("/api/v1/capacity", { params: { query: { cursor } } }))}
        keyOf={({ resource, name }) => `${resource} ${name}`}
        empty={m("Nothing is foreseen yet: that is done once an hour.")}
        columns={[
          { title: m("What"), width: "9rem", cell: ({ resource }) => resource },
          { title: m("Name"), width: "minmax(8rem, 1fr)", cell: ({ name }) => name },
          { title: m("Full on"), width: "8rem", cell: ({ full_on }) => full_on ?? "-" },
          { title: m("In words"), width: "minmax(16rem, 4fr)", cell: ({ words }) => <span title={words}>{words}</span> },
        ]}
      />
      <PlainList
        title={m("The next hour of nodes")}
        name={["forecasts", "nodes"]}
        fetchPage={(cursor) => answered(client.GET("/api/v1/forecasts/nodes", { params: { query: { cursor } } }))}
        keyOf={({ name }) => name}
        empty={m("There is no node.")}
        columns={[
          { title: m("Node"), width: "minmax(8rem, 1fr)", cell: ({ name }) => name },
          { title: m("Site"), width: "minmax(6rem, 1fr)", cell: ({ site }) => site },
          { title: m("Most processors"), width: "9rem", cell: peakOf },
          { title: m("90 %"), width: "8rem", cell: ({ forecast }) => between(forecast?.cpu_peak_lower, forecast?.cpu_peak_upper) },
          { title: m("Memory of its VMs"), width: "9rem", cell: ({ forecast }) => (forecast?.memory_mib === null || forecast === null ? "-" : mib(forecast.memory_mib)) },
          { title: m("Made from"), width: "minmax(12rem, 3fr)", cell: ({ forecast }) => madeFrom(forecast?.why) },
        ]}
      />
      <PlainList
        title={m("The next week of VMs")}
        name={["forecasts", "vms"]}
        fetchPage={(cursor) => answered(client.GET("/api/v1/forecasts/vms", { params: { query: { cursor } } }))}
        keyOf={({ id }) => id}
        empty={m("There is no VM.")}
        columns={[
          { title: m("VM"), width: "minmax(8rem, 1fr)", cell: ({ id, name }) => <Link href={`/vms/${id}`}>{name}</Link> },
          { title: m("Node"), width: "minmax(7rem, 1fr)", cell: ({ node }) => node ?? "-" },
          { title: m("Most processors"), width: "9rem", cell: maximumOf },
          { title: m("90 %"), width: "8rem", cell: ({ forecast }) => between(forecast?.cpu_max_lower, forecast?.cpu_max_upper) },
          { title: m("Made from"), width: "minmax(12rem, 3fr)", cell: ({ forecast }) => madeFrom(forecast?.why) },
        ]}
      />
      <PlainList
        title={m("How good the forecasts were")}
        name={["forecasts", "accuracy"]}
        fetchPage={() => answered(client.GET("/api/v1/forecasts/accuracy"))}
        keyOf={({ kind }) => kind}
        empty={m("No forecast could be compared with what came yet.")}
        columns={[
          { title: m("Forecast"), width: "8rem", cell: ({ kind }) => kind },
          { title: m("Compared"), width: "7rem", cell: ({ scored }) => scored },
          { title: m("Error"), width: "6rem", cell: ({ error }) => percent(error) },
          { title: m("As in the last hour"), width: "10rem", cell: ({ last_error }) => percent(last_error) },
          { title: m("In the interval"), width: "8rem", cell: ({ coverage }) => percent(coverage) },
          { title: m("Set aside since"), width: "11rem", cell: ({ aside_since }) => (aside_since === null ? "-" : time(aside_since)) },
          { title: m("In words"), width: "minmax(16rem, 3fr)", cell: ({ words }) => <span title={words}>{words}</span> },
        ]}
      />
    </div>
  );
}

function peakOf({ forecast, cpus }: OfNode): string {
  return forecast === null ? "-" : t("{used} of {all}", { used: forecast.cpu_peak.toFixed(1), all: cpus ?? "?" });
}

function maximumOf({ forecast, vcpus }: OfVm): string {
  return forecast === null ? "-" : t("{used} of {all}", { used: forecast.cpu_max.toFixed(1), all: vcpus });
}

function between(lower: number | null | undefined, upper: number | null | undefined): string {
  return lower == null || upper == null ? "-" : `${lower.toFixed(1)} – ${upper.toFixed(1)}`;
}

function percent(share: number | null): string {
  return share === null ? "-" : `${(100 * share).toFixed(1)} %`;
}

function madeFrom(why: string | undefined): ReactElement {
  const words = why ?? t("Nothing is known of its load lately.");
  return <span title={words}>{words}</span>;
}
