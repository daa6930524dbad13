/** Drills that the installation runs on itself: when each was run last, and what it measured. */
import { Label } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { answered, client, type DrillRun, type Schemas } from "../api";
import { When } from "../components/labels";
import { LiveList } from "../components/live_list";
import { PlainList } from "../components/plain";
import type { Column } from "../components/table";
import { duration } from "../format";
import { m, t } from "../i18n";
import { useList } from "../list";
import { movesBy, useSorting } from "../sorting";

type Figures = Schemas["DrillFigures"];

export function Drills(): ReactElement {
  return (
    <div className="nc-page">
      <PlainList
        level="h1"
        title={m("Drills")}
        name={["drills", "calendar"]}
        fetchPage={async () => ({ ...(await answered(client.GET("/api/v1/drills/calendar"))), next: null })}
        keyOf={({ name }) => name}
        empty={m("There is no drill.")}
        columns={[
          { title: m("Drill"), width: "minmax(9rem, 1fr)", cell: ({ name }) => name },
          { title: m("What"), width: "minmax(14rem, 3fr)", cell: ({ what }) => <span title={what}>{what}</span> },
          { title: m("Last run"), width: "13rem", cell: ({ last }) => (last === null ? t("never") : <When at={last.ended_at} />) },
          { title: m("Verdict"), width: "7rem", cell: ({ last }) => (last === null ? "-" : <Verdict run={last} />) },
          { title: m("Overdue"), width: "6rem", cell: ({ overdue }) => (overdue ? <Label color="orange">{t("overdue")}</Label> : "-") },
          { title: m("Command"), width: "minmax(14rem, 2fr)", cell: ({ name }) => <code>{`novacron drill run ${name}`}</code> },
        ]}
      />
      <Runs />
    </div>
  );
}

function Runs(): ReactElement {
  const shown: readonly Column<DrillRun>[] = [
    { title: m("Drill"), width: "minmax(9rem, 1fr)", sort: "drill", cell: (run) => run.drill },
    { title: m("Ended"), width: "13rem", sort: "ended_at", cell: (run) => <When at={run.ended_at} />, text: (run) => run.ended_at },
    { title: m("By"), width: "minmax(6rem, 1fr)", sort: "recorded_by", cell: (run) => run.recorded_by },
    { title: m("On"), width: "minmax(6rem, 1fr)", sort: "machine", cell: (run) => run.machine },
    { title: m("Verdict"), width: "7rem", sort: "verdict", cell: (run) => <Verdict run={run} />, text: (run) => run.verdict },
    { title: m("Well again in"), width: "8rem", cell: (run) => figure(run.measured, run.promised, "recover_s") },
    { title: m("Lost"), width: "8rem", cell: (run) => figure(run.measured, run.promised, "loss_s") },
    { title: m("Why"), width: "minmax(8rem, 2fr)", cell: (run) => <span title={steps(run)}>{run.error || steps(run)}</span>, text: (run) => run.error },
  ];
  const sorting = useSorting("drill-sort", "-ended_at", shown);
  const sort = sorting.by;
  const list = useList("drill", { sort }, (query) => answered(client.GET("/api/v1/drills", { params: { query: { sort, ...query } } })), { moves: movesBy(sort) });
  return <LiveList kind="drill" title={m("Runs of drills")} list={list} sorting={sorting} columns={shown} empty={m("No drill was run yet.")} level="h2" />;
}

function Verdict({ run }: { run: DrillRun }): ReactElement {
  return <Label color={run.verdict === "passed" ? "green" : "red"}>{run.verdict}</Label>;
}

function figure(measured: Figures, promised: Figures, name: keyof Figures): string {
  const value = measured[name];
  const most = promised[name];
  if (value == null) return "-";
  return most == null ? duration(value) : t("{value} of {most}", { value: duration(value), most: duration(most) });
}

function steps(run: DrillRun): string {
  return run.steps.map((step) => (step.said ? `${step.name}: ${step.said}` : step.name)).join("\n");
}
