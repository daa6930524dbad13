/** The map of sites and links, kept current by the stream. Each site and link can be reached with the Tab key. */
import { Title } from "@patternfly/react-core";
import { type KeyboardEvent, type ReactElement, useEffect, useMemo, useState } from "react";
import { answered, client, type Me } from "../api";
import { bytes } from "../format";
import { t } from "../i18n";
import { useList, useWhole } from "../list";
import { useAll } from "../live";
import { useNodes } from "../pages/nodes";
import { HEIGHT, type LinkOnMap, type SiteOnMap, siteMap, WIDTH } from "./site_map";

const MBIT = 125_000;
const MINUTE_MS = 60_000;
const NAME_LENGTH_MAX = 14;
const THIN_PX = 2;
const THICK_PX = 12;

/** The time, each minute anew: limits follow the clock. */
function useMinute(): Date {
  const [now, setNow] = useState(() => new Date());
  useEffect(() => {
    const timer = setInterval(() => setNow(new Date()), MINUTE_MS);
    return () => clearInterval(timer);
  }, []);
  return now;
}

function flowing({ flow, limit }: LinkOnMap): string {
  const used = `${(flow / MBIT).toFixed(flow > 0 ? 1 : 0)}`;
  return limit === null ? t("{used} Mbit/s, no limit", { used }) : t("{used} of {limit} Mbit/s", { used, limit: limit / MBIT });
}

function ofLink(link: LinkOnMap): string {
  return t("Link {one} – {other}: {flow}; migrations: {moves}", { one: link.sites[0], other: link.sites[1], flow: flowing(link), moves: link.moves });
}

function ofSite({ name, nodes, ready, flow, moves }: SiteOnMap): string {
  const within = t("Site {name}: {ready} of {nodes} nodes are ready", { name, nodes, ready });
  return moves === 0 ? within : `${within}; ${t("migrations within it: {moves}, {rate}/s", { moves, rate: bytes(flow) })}`;
}

/** How full a link is decides how it looks; words beside it say the same. */
function classOf({ flow, limit }: LinkOnMap): string {
  if (flow === 0) return "nc-link";
  return limit !== null && flow > 0.9 * limit ? "nc-link nc-full" : "nc-link nc-flows";
}

interface Part {
  label: string;
  shown: (label: string | null) => void;
}

function focusable({ label, shown }: Part): Record<string, unknown> {
  return {
    role: "img",
    tabIndex: 0,
    "aria-label": label,
    onFocus: () => shown(label),
    onBlur: () => shown(null),
    onMouseEnter: () => shown(label),
    onMouseLeave: () => shown(null),
    onKeyDown: (event: KeyboardEvent) => event.key === "Escape" && shown(null),
  };
}

function Edge({ link, shown }: { link: LinkOnMap; shown: Part["shown"] }): ReactElement {
  const { from, to, limit, flow } = link;
  const share = limit === null ? (flow > 0 ? 0.5 : 0) : Math.min(1, flow / limit);
  return (
    <g className={classOf(link)} {...focusable({ label: ofLink(link), shown })}>
      <line x1={from.x} y1={from.y} x2={to.x} y2={to.y} className="nc-link-hit" />
      <line x1={from.x} y1={from.y} x2={to.x} y2={to.y} strokeWidth={THIN_PX + share * (THICK_PX - THIN_PX)} {...(limit === null && { strokeDasharray: "6 4" })} />
      <text x={(from.x + to.x) / 2} y={(from.y + to.y) / 2 - 8} textAnchor="middle">
        {flowing(link)}
      </text>
    </g>
  );
}

function Place({ site, shown }: { site: SiteOnMap; shown: Part["shown"] }): ReactElement {
  const name = site.name.length > NAME_LENGTH_MAX ? `${site.name.slice(0, NAME_LENGTH_MAX - 1)}…` : site.name;
  return (
    <g className={site.ready < site.nodes ? "nc-site nc-troubled" : "nc-site"} {...focusable({ label: ofSite(site), shown })}>
      <rect x={site.x - 70} y={site.y - 26} width={140} height={52} rx={8} />
      <text x={site.x} y={site.y - 4} textAnchor="middle" className="nc-site-name">
        {name}
      </text>
      <text x={site.x} y={site.y + 15} textAnchor="middle">
        {t("{ready} of {nodes} ready", { ready: site.ready, nodes: site.nodes })}
      </text>
    </g>
  );
}

export function MapOfSites({ me }: { me: Me }): ReactElement {
  useNodes(me);
  const sort = "-created_at";
  useWhole(useList("link", {}, (query) => answered(client.GET("/api/v1/links", { params: { query } }))));
  useList("migration", { sort }, (query) => answered(client.GET("/api/v1/migrations", { params: { query: { sort, ...query } } })));
  const [nodes, links, migrations] = [useAll("node"), useAll("link"), useAll("migration")];
  const now = useMinute();
  const map = useMemo(() => siteMap(nodes, links, migrations, now), [nodes, links, migrations, now]);
  const [words, setWords] = useState<string | null>(null);
  return (
    <section className="nc-section" aria-label={t("Map of sites and links")}>
      <Title headingLevel="h2">{t("Map of sites and links")}</Title>
      <svg className="nc-map" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} role="group" aria-label={t("Map of sites and links")}>
        {map.links.map((link) => (
          <Edge key={link.sites.join("\n")} link={link} shown={setWords} />
        ))}
        {map.sites.map((site) => (
          <Place key={site.name} site={site} shown={setWords} />
        ))}
      </svg>
      <p className="nc-small nc-map-words">{words ?? t("A line is as thick as the share of its limit that migrations take; without a limit it is dashed.")}</p>
    </section>
  );
}
