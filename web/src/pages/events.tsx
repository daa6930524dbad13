/** What has happened: to one object, or to all. */
import { Title } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { answered, client, type Event, type EventPage } from "../api";
import { When } from "../components/labels";
import { type Column, LiveTable } from "../components/table";
import { type PageQuery, useList } from "../list";
import { m, t } from "../i18n";

const COLUMNS: readonly Column<Event>[] = [
  { title: m("When"), width: "13rem", cell: (event) => <When at={event.last_at ?? event.at} /> },
  { title: m("Object"), width: "minmax(10rem, 1fr)", cell: (event) => `${event.kind} ${event.name}` },
  { title: m("Reason"), width: "minmax(9rem, 1fr)", cell: (event) => event.reason + (event.count > 1 ? ` (${event.count} times)` : "") },
  { title: m("Message"), width: "minmax(16rem, 3fr)", cell: (event) => <span title={event.message}>{event.message}</span> },
  { title: m("By"), width: "minmax(6rem, 1fr)", cell: (event) => event.actor },
];

async function eventPage(query: PageQuery & { object?: string }): Promise<EventPage> {
  const page = await answered(client.GET("/api/v1/events", { params: { query } }));
  if (typeof page === "string") throw new Error("the server answered with a stream");
  return page;
}

export function EventTable({ object }: { object?: string }): ReactElement {
  const filter = object === undefined ? {} : { object };
  const list = useList("event", filter, (query) => eventPage({ ...filter, ...query }), {
    belongs: (event) => object === undefined || event.object === object || event.name === object,
  });
  return <LiveTable kind="event" label={t("Events")} list={list} columns={COLUMNS} empty={t("Nothing has happened yet.")} />;
}

export function Events(): ReactElement {
  return (
    <div className="nc-page">
      <Title headingLevel="h1">{t("Events")}</Title>
      <EventTable />
    </div>
  );
}
