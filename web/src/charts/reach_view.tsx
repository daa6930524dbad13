/** A picture of what can reach what, kept current by the stream. Each way can be reached with the Tab key. */
import { Title } from "@patternfly/react-core";
import { type ReactElement, useMemo, useState } from "react";
import { answered, client } from "../api";
import { t } from "../i18n";
import { useList, useWhole } from "../list";
import { useAll } from "../live";
import { draw, type End, type Way, ways } from "./reach";

const WIDTH = 720;
const BOX_PX = 190;
const WAYS_MAX = 60;
const NAME_LENGTH_MAX = 24;

const KINDS: Record<End["kind"], string> = { outside: "", addresses: "", network: "▦ ", group: "", vm: "▢ " };

function nameOf({ kind, name, named }: End): string {
  return KINDS[kind] + (named ? name : t(name));
}

function short(text: string): string {
  return text.length > NAME_LENGTH_MAX ? `${text.slice(0, NAME_LENGTH_MAX - 1)}…` : text;
}

function wordsOf({ from, to, by }: Way): string {
  return t("{from} reaches {to}: {by}", { from: nameOf(from), to: nameOf(to), by: by.join(", ") });
}

function Ends({ ends, x }: { ends: readonly { end: End; y: number }[]; x: number }): ReactElement {
  return (
    <>
      {ends.map(({ end, y }) => (
        <g key={`${end.kind} ${end.name}`} className="nc-site">
          <rect x={x} y={y - 16} width={BOX_PX} height={32} rx={6} />
          <text x={x + BOX_PX / 2} y={y + 5} textAnchor="middle">
            {short(nameOf(end))}
          </text>
        </g>
      ))}
    </>
  );
}

export function WhatReachesWhat(): ReactElement {
  useWhole(useList("network", {}, (query) => answered(client.GET("/api/v1/networks", { params: { query } }))));
  useWhole(useList("security-group", {}, (query) => answered(client.GET("/api/v1/security-groups", { params: { query } }))));
  useWhole(useList("floating-address", {}, (query) => answered(client.GET("/api/v1/floating-addresses", { params: { query } }))));
  useWhole(useList("forward", {}, (query) => answered(client.GET("/api/v1/forwards", { params: { query } }))));
  const [networks, groups, addresses, forwards] = [useAll("network"), useAll("security-group"), useAll("floating-address"), useAll("forward")];
  const all = useMemo(() => ways({ networks, groups, addresses, forwards }), [networks, groups, addresses, forwards]);
  const { left, right, lines, height } = useMemo(() => draw(all, WAYS_MAX), [all]);
  const [words, setWords] = useState<string | null>(null);
  if (all.length === 0) return <></>;
  return (
    <section className="nc-section" aria-label={t("What can reach what")}>
      <Title headingLevel="h2">{t("What can reach what")}</Title>
      <svg className="nc-map" viewBox={`0 0 ${WIDTH} ${height}`} role="group" aria-label={t("What can reach what")}>
        {lines.map(({ way, from, to }) => (
          <g key={wordsOf(way)} className="nc-link" role="img" tabIndex={0} aria-label={wordsOf(way)} onFocus={() => setWords(wordsOf(way))} onBlur={() => setWords(null)} onMouseEnter={() => setWords(wordsOf(way))} onMouseLeave={() => setWords(null)}>
            <line x1={BOX_PX} y1={from} x2={WIDTH - BOX_PX} y2={to} className="nc-link-hit" />
            <line x1={BOX_PX} y1={from} x2={WIDTH - BOX_PX - 8} y2={to} strokeWidth={1.5} />
            <circle cx={WIDTH - BOX_PX - 5} cy={to} r={4} />
            <text x={(BOX_PX + WIDTH - BOX_PX) / 2} y={(from + to) / 2 - 4} textAnchor="middle">
              {short(way.by.join(", "))}
            </text>
          </g>
        ))}
        <Ends ends={left} x={0} />
        <Ends ends={right} x={WIDTH - BOX_PX} />
      </svg>
      <p className="nc-small nc-map-words">{words ?? t("From left to right. Interfaces without a security group accept everything that reaches their network; with one, what its rules let in.")}</p>
      {all.length > lines.length && <p>{t("{count} more ways are not drawn: the lists below have them.", { count: all.length - lines.length })}</p>}
    </section>
  );
}
