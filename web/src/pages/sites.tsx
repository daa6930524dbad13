/** Sites, the links between them with their limits, and how the fleet is rebalanced. */
import { Title } from "@patternfly/react-core";
import { useQuery } from "@tanstack/react-query";
import type { ReactElement } from "react";
import { answered, client, type Link, type Me, type Schemas } from "../api";
import { MapOfSites } from "../charts/site_map_view";
import { When } from "../components/labels";
import { LiveList } from "../components/live_list";
import { Refusal } from "../components/notices";
import { checked, given, number, type Operation, OperationBar, OperationButton, type Values } from "../components/operation";
import { PlainList, Rows } from "../components/plain";
import type { Column } from "../components/table";
import { bytes } from "../format";
import { m, t } from "../i18n";
import { useList } from "../list";
import { refusalFor } from "../session";
import { drainFields, drainOf } from "./nodes";

type Site = Schemas["Site"];
type Settings = Schemas["Settings"];

function ofSite(me: Me, site: Site): Operation[] {
  const at = { params: { path: { site: site.name } } };
  const subject = site.name;
  const refusal = refusalFor(me, "operate");
  return [
    {
      label: m("Change"),
      subject,
      refusal,
      fields: [{ name: "forward_ports", label: m("Ports of the gateways that may be forwarded"), optional: true, value: site.forward_ports, help: m("Such as 20000-29999. Empty: none.") }],
      run: (v) => answered(client.PATCH("/api/v1/sites/{site}", { ...at, body: { forward_ports: v["forward_ports"] ?? "" } })),
    },
    { label: m("Drain"), subject, refusal, fields: drainFields(), warning: m("All VMs of the site move to other sites."), confirm: site.name, undo: false, command: () => `novacron site drain ${site.name}`, run: (v) => answered(client.POST("/api/v1/sites/{site}/actions/drain", { ...at, body: drainOf(v) })) },
    {
      label: m("Uncordon"),
      subject,
      refusal,
      fields: [{ name: "bring_back", label: m("Bring back the VMs that the drain moved"), kind: "check" }],
      command: (v) => `novacron site uncordon ${site.name}${checked(v["bring_back"]) ? " --bring-back" : ""}`,
      run: (v) => answered(client.POST("/api/v1/sites/{site}/actions/uncordon", { ...at, body: { bring_back: checked(v["bring_back"]) } })),
    },
  ];
}

export function Sites({ me }: { me: Me }): ReactElement {
  return (
    <div className="nc-page">
      <PlainList
        level="h1"
        title={m("Sites")}
        name={["sites"]}
        fetchPage={() => answered(client.GET("/api/v1/sites"))}
        keyOf={(site) => site.name}
        empty={m("No node is at a site.")}
        columns={[
          { title: m("Site"), width: "minmax(8rem, 1fr)", cell: (site) => site.name },
          { title: m("Nodes"), width: "minmax(10rem, 2fr)", cell: (site) => site.nodes.join(", ") },
          { title: m("Ready"), width: "6rem", cell: (site) => site.ready },
          { title: m("Cordoned"), width: "6rem", cell: (site) => site.cordoned },
          { title: m("Ports to forward"), width: "minmax(8rem, 1fr)", cell: (site) => site.forward_ports || "-" },
          { title: "", width: "16rem", cell: (site) => <OperationBar operations={ofSite(me, site)} /> },
        ]}
      />
      <MapOfSites me={me} />
      <Links me={me} />
      <Rebalancing me={me} />
    </div>
  );
}

const MBIT = 125_000;

function limitLink(me: Me): Operation {
  return {
    label: m("Limit a link"),
    refusal: refusalFor(me, "operate"),
    fields: [
      { name: "one", label: m("Site") },
      { name: "other", label: m("Other site"), help: m("Or the same one, for a limit within it.") },
      { name: "rate_bytes_per_s", label: m("Mbit/s for all migrations together"), kind: "number" },
    ],
    command: (v) => `novacron link set ${v["one"]} ${v["other"]} --rate ${v["rate_bytes_per_s"]}Mbit`,
    run: (v) => answered(client.PUT("/api/v1/links/{one}/{other}", { params: { path: { one: v["one"] ?? "", other: v["other"] ?? "" } }, body: { rate_bytes_per_s: Math.round(Number(v["rate_bytes_per_s"]) * MBIT) } })),
  };
}

function probe(me: Me): Operation {
  return {
    label: m("Measure a path"),
    refusal: refusalFor(me, "operate"),
    fields: [
      { name: "source", label: m("From node") },
      { name: "target", label: m("To node") },
      { name: "seconds", label: m("Seconds"), kind: "number", optional: true },
    ],
    command: (v) => `novacron link probe ${v["source"]} ${v["target"]}`,
    run: (v) => answered(client.POST("/api/v1/links/actions/probe", { body: { source: v["source"] ?? "", target: v["target"] ?? "", seconds: number(v["seconds"]) } })),
    show: (path: Schemas["PathMeasured"]) => (
      <p>
        {t("{rate}/s, at best {best}/s; round trip {rtt} ms, under load {loaded} ms; {count} retransmits.", {
          rate: bytes(path.rate_bytes_per_s),
          best: bytes(path.best_rate_bytes_per_s),
          rtt: path.rtt_ms.toFixed(1),
          loaded: path.loaded_rtt_ms.toFixed(1),
          count: path.retransmits,
        })}
      </p>
    ),
  };
}

function Links({ me }: { me: Me }): ReactElement {
  const list = useList("link", {}, (query) => answered(client.GET("/api/v1/links", { params: { query } })));
  const columns: readonly Column<Link>[] = [
    { title: m("Sites"), width: "minmax(10rem, 1fr)", cell: (link) => link.sites.join(" – ") },
    { title: m("Limit"), width: "9rem", cell: (link) => `${link.spec.rate_bytes_per_s / MBIT} Mbit/s` },
    { title: m("Windows"), width: "minmax(12rem, 2fr)", cell: (link) => (link.spec.schedule ?? []).map(({ start, end, rate_bytes_per_s }) => `${start}-${end} ${rate_bytes_per_s / MBIT} Mbit/s`).join(", ") || "-" },
    {
      title: "",
      width: "8rem",
      cell: (link) => {
        const [one = "", other = one] = link.sites;
        return (
          <OperationBar
            operations={[
              {
                label: m("Remove"),
                subject: link.sites.join(" – "),
                refusal: refusalFor(me, "operate"),
                warning: m("Migrations between these sites are limited no longer."),
                command: () => `novacron link remove ${one} ${other}`,
                run: () => answered(client.DELETE("/api/v1/links/{one}/{other}", { params: { path: { one, other } } })),
              },
            ]}
          />
        );
      },
    },
  ];
  return (
    <LiveList kind="link" title={m("Links")} list={list} columns={columns} empty={m("No link has a limit.")} create={limitLink(me)} level="h2">
      <div>
        <OperationButton operation={probe(me)} />
      </div>
    </LiveList>
  );
}

const MODES = Object.keys({ off: true, advise: true, auto: true } satisfies Record<Schemas["RebalanceMode"], true>);
const BASES = Object.keys({ forecast: true, average: true } satisfies Record<Schemas["RebalanceBasis"], true>);
/** Settings that are numbers, as they are called. */
const FIGURES: Record<Exclude<keyof Settings, "mode" | "basis">, string> = {
  cpu_share: m("Share of a node's processors above which it is overloaded"),
  overload_minutes_min: m("Minutes of foreseen overload from which VMs are moved"),
  relief_minutes_min: m("Least minutes of overload that a move prevents"),
  cost_per_minute: m("Cost of a minute of a migration, in minutes of overload"),
  imbalance_min: m("By averages: imbalance from which VMs are moved"),
  rounds: m("By averages: rounds for which it must last"),
  gain_min: m("By averages: least gain of a move"),
  cost_per_s: m("By averages: cost of a second of a migration"),
  cool_down_s: m("Seconds before a VM is moved again"),
  concurrency: m("Moves at once"),
};

function settingsOf(values: Values): Settings {
  const figures = Object.keys(FIGURES).map((name) => [name, Number(values[name])]);
  const basis = values["basis"] as Schemas["RebalanceBasis"];
  return { mode: values["mode"] as Schemas["RebalanceMode"], basis, ...Object.fromEntries(figures) };
}

function Rebalancing({ me }: { me: Me }): ReactElement {
  const query = useQuery({ queryKey: ["plain", "rebalancing"], queryFn: () => answered(client.GET("/api/v1/rebalancing")) });
  const shown = query.data;
  const title = <Title headingLevel="h2">{t("Rebalancing")}</Title>;
  if (query.error !== null) return <Refusal title={t("{what} can't be shown", { what: t("Rebalancing") })} error={query.error} />;
  if (shown === undefined) return title;
  const { settings, decision } = shown;
  const change: Operation = {
    label: m("Change"),
    subject: t("Rebalancing"),
    refusal: refusalFor(me, "operate"),
    fields: [
      { name: "mode", label: m("Mode"), options: MODES, value: settings.mode ?? "off", help: m("advise only says what it would do.") },
      { name: "basis", label: m("Basis"), options: BASES, value: settings.basis ?? "forecast", help: m("forecast prevents overload; average evens loads out.") },
      ...Object.entries(FIGURES).map(([name, label]) => ({ name, label, value: String(settings[name as keyof typeof FIGURES] ?? "") })),
    ],
    command: (v) => `novacron rebalance set --mode ${given(v["mode"]) ?? "off"} --basis ${given(v["basis"]) ?? "forecast"}`,
    run: (v) => answered(client.PUT("/api/v1/rebalancing", { body: settingsOf(v) })),
  };
  const moves: readonly Column<Schemas["Move"]>[] = [
    { title: m("VM"), width: "minmax(8rem, 1fr)", cell: (move) => move.vm_name },
    { title: m("From"), width: "minmax(7rem, 1fr)", cell: (move) => move.source },
    { title: m("To"), width: "minmax(7rem, 1fr)", cell: (move) => move.target },
    { title: m("Why"), width: "minmax(12rem, 3fr)", cell: (move) => move.why },
  ];
  return (
    <section className="nc-section" aria-label={t("Rebalancing")}>
      <div className="nc-bar">
        {title}
        <span>{t("mode: {mode}", { mode: settings.mode ?? "off" })}</span>
        <OperationButton operation={change} />
      </div>
      {decision !== null && (
        <p>
          {shown.decided_at !== null && <When at={shown.decided_at} />} {decision.why}
        </p>
      )}
      {decision !== null && decision.moves.length > 0 && <Rows title={m("Moves")} columns={moves} items={decision.moves} keyOf={(move) => move.vm} />}
    </section>
  );
}
