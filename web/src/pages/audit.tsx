/** Who did what, from where, and with what outcome; and the calls of the API. */
import { Button, FormSelect, FormSelectOption, TextInput } from "@patternfly/react-core";
import { type FormEvent, type ReactElement, useState } from "react";
import { useSearchParams } from "wouter";
import { answered, client, type Me, type Schemas } from "../api";
import { When } from "../components/labels";
import type { Operation } from "../components/operation";
import { Views } from "../components/views";
import { PlainList } from "../components/plain";
import { m, t } from "../i18n";
import { may, refusalFor } from "../session";

const OUTCOMES = Object.keys({ done: true, refused: true, failed: true } satisfies Record<Schemas["AuditOutcome"], true>);
const TEXTS = { actor: m("User"), object: m("Object"), action: m("Action"), address: m("Address") } as const;
type Name = keyof typeof TEXTS | "outcome" | "since" | "until";

function utcOf(local: string): string {
  return new Date(local).toISOString();
}

/** The search is in the address, so that it can be shared; it begins when it is sent. */
export function Audit({ me }: { me: Me }): ReactElement {
  const [address, setAddress] = useSearchParams();
  const [typed, setTyped] = useState<Partial<Record<Name, string>>>(() => Object.fromEntries(address));
  const search = (event: FormEvent): void => {
    event.preventDefault();
    setAddress(Object.fromEntries(Object.entries(typed).filter(([, value]) => value !== "")));
  };
  const text = (name: keyof typeof TEXTS): { [key in keyof typeof TEXTS]?: string } => (address.get(name) ? { [name]: address.get(name) ?? "" } : {});
  const since = address.get("since");
  const until = address.get("until");
  const outcome = address.get("outcome");
  const filters = {
    ...text("actor"),
    ...text("object"),
    ...text("action"),
    ...text("address"),
    ...(outcome && { outcome: outcome as Schemas["AuditOutcome"] }),
    ...(since && { since: utcOf(since) }),
    ...(until && { until: utcOf(until) }),
  };
  const set = (name: Name) => (_: unknown, value: string): void => setTyped({ ...typed, [name]: value });
  return (
    <div className="nc-page">
      <PlainList
        level="h1"
        title={m("Audit log")}
        name={["audit", JSON.stringify(filters)]}
        fetchPage={(cursor) => answered(client.GET("/api/v1/audit", { params: { query: { limit: 200, ...filters, ...(cursor !== undefined && { cursor }) } } }))}
        keyOf={(record) => String(record.id)}
        empty={m("Nothing like that has been done.")}
        create={eraseUser(me)}
        columns={[
          { title: m("When"), width: "13rem", cell: (record) => <When at={record.at} />, text: (record) => record.at },
          { title: m("User"), width: "minmax(7rem, 1fr)", cell: (record) => record.actor },
          { title: m("Action"), width: "minmax(9rem, 1fr)", cell: (record) => record.action },
          { title: m("Object"), width: "minmax(8rem, 1fr)", cell: (record) => <span title={record.object ?? ""}>{record.name ?? record.object ?? "-"}</span>, text: (record) => record.name ?? record.object ?? "" },
          { title: m("Project"), width: "minmax(6rem, 1fr)", cell: (record) => record.project ?? "-" },
          { title: m("Outcome"), width: "6rem", cell: (record) => record.outcome },
          { title: m("Status"), width: "5rem", cell: (record) => record.status },
          { title: m("From"), width: "minmax(7rem, 1fr)", cell: (record) => record.address },
          { title: m("Detail"), width: "minmax(10rem, 2fr)", cell: (record) => <span title={record.detail}>{record.detail}</span>, text: (record) => record.detail },
          { title: m("Request"), width: "minmax(8rem, 1fr)", cell: (record) => record.request_id },
        ]}
      >
        <form className="nc-bar" onSubmit={search} role="search">
          {(Object.keys(TEXTS) as (keyof typeof TEXTS)[]).map((name) => (
            <TextInput key={name} className="nc-filter" aria-label={t(TEXTS[name])} placeholder={t(TEXTS[name])} value={typed[name] ?? ""} onChange={set(name)} />
          ))}
          <FormSelect className="nc-filter" aria-label={t("Outcome")} value={typed.outcome ?? ""} onChange={set("outcome")}>
            <FormSelectOption value="" label={t("Any outcome")} />
            {OUTCOMES.map((name) => (
              <FormSelectOption key={name} value={name} label={name} />
            ))}
          </FormSelect>
          <TextInput className="nc-filter" type="datetime-local" aria-label={t("Since")} value={typed.since ?? ""} onChange={set("since")} />
          <TextInput className="nc-filter" type="datetime-local" aria-label={t("Until")} value={typed.until ?? ""} onChange={set("until")} />
          <Button type="submit" variant="secondary">
            {t("Search")}
          </Button>
          <Views page="audit" />
        </form>
      </PlainList>
      {may(me, "manage", null) && <Chain />}
      {may(me, "operate", null) && <ApiLog />}
    </div>
  );
}

function eraseUser(me: Me): Operation {
  return {
    label: m("Erase a user from the log"),
    refusal: refusalFor(me, "manage"),
    warning: m("The user is deleted, and the log names a pseudonym instead. Nobody can undo that."),
    fields: [{ name: "user", label: m("User") }],
    command: (v) => `novacron user erase ${v["user"]}`,
    run: (v) => answered(client.POST("/api/v1/audit/erasures", { body: { user: v["user"] ?? "" } })),
    show: (erasure: Schemas["Erasure"]) => <p>{t("{records} records name {pseudonym} now.", { records: erasure.records, pseudonym: erasure.pseudonym })}</p>,
  };
}

function Chain(): ReactElement {
  return (
    <>
      <PlainList
        title={m("Hash chain")}
        name={["chain"]}
        fetchPage={async () => ({ items: [await answered(client.GET("/api/v1/audit/chain"))] })}
        keyOf={(chain) => chain.chain}
        empty=""
        columns={[
          { title: m("Chain"), width: "minmax(8rem, 1fr)", cell: (chain) => chain.chain },
          { title: m("From"), width: "6rem", cell: (chain) => chain.start_seq },
          { title: m("To"), width: "6rem", cell: (chain) => chain.seq },
          { title: m("Hash"), width: "minmax(14rem, 3fr)", cell: (chain) => chain.hash },
          { title: m("Not chained yet"), width: "8rem", cell: (chain) => chain.unchained },
          { title: m("Strays"), width: "6rem", cell: (chain) => chain.strays.length },
        ]}
      />
      <PlainList
        title={m("Signed heads of the chain")}
        name={["heads"]}
        fetchPage={(cursor) => answered(client.GET("/api/v1/audit/heads", { params: { query: { limit: 20, ...(cursor !== undefined && { cursor }) } } }))}
        keyOf={(head) => `${head.chain} ${head.seq} ${head.key}`}
        empty={m("No head has been signed yet.")}
        columns={[
          { title: m("When"), width: "13rem", cell: (head) => <When at={head.at} />, text: (head) => head.at },
          { title: m("Up to"), width: "6rem", cell: (head) => head.seq },
          { title: m("Hash"), width: "minmax(14rem, 3fr)", cell: (head) => head.hash },
          { title: m("Key"), width: "minmax(8rem, 1fr)", cell: (head) => head.key },
        ]}
      />
    </>
  );
}

function ApiLog(): ReactElement {
  return (
    <PlainList<Schemas["ApiCall"]>
      title={m("Latest calls of the API")}
      name={["api-log"]}
      fetchPage={() => answered(client.GET("/api/v1/api-log", { params: { query: { limit: 100 } } }))}
      keyOf={(call) => call.request_id}
      empty={m("There has been none.")}
      columns={[
        { title: m("When"), width: "13rem", cell: (call) => <When at={call.at} />, text: (call) => call.at },
        { title: m("User"), width: "minmax(7rem, 1fr)", cell: (call) => call.user_name },
        { title: m("Request"), width: "minmax(14rem, 3fr)", cell: (call) => `${call.method} ${call.route}` },
        { title: m("Status"), width: "5rem", cell: (call) => call.status },
        { title: m("Took"), width: "7rem", cell: (call) => `${call.duration_ms.toFixed(1)} ms` },
        { title: m("From"), width: "minmax(7rem, 1fr)", cell: (call) => call.address },
        { title: m("Id"), width: "minmax(8rem, 1fr)", cell: (call) => call.request_id },
      ]}
    />
  );
}

