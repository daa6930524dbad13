/** Sites and what joins them, as a drawing: where each is, what may flow between them, and what does. Pure. */
import type { Link, Migration, Node } from "../api";
import { isUnderWay } from "../components/phases";

export interface SiteOnMap {
  name: string;
  x: number;
  y: number;
  nodes: number;
  ready: number;
  /** Bytes a second of migrations within it. */
  flow: number;
  moves: number;
}

export interface LinkOnMap {
  sites: [string, string];
  from: { x: number; y: number };
  to: { x: number; y: number };
  /** What migrations may take now; null: there is no limit. */
  limit: number | null;
  flow: number;
  moves: number;
}

export interface SiteMap {
  sites: SiteOnMap[];
  links: LinkOnMap[];
}

export const WIDTH = 720;
export const HEIGHT = 400;
const MARGIN_X = 110;
const MARGIN_Y = 60;
const MINUTES_OF_DAY = 1440;

function minutes(clock: string): number {
  const [hours = "0", past = "0"] = clock.split(":");
  return 60 * Number(hours) + Number(past);
}

/** What a link's limit is at a time: the lowest of those windows that are open, which are written in UTC. */
export function limitAt({ rate_bytes_per_s, schedule = [] }: Link["spec"], now: Date): number {
  const minute = 60 * now.getUTCHours() + now.getUTCMinutes();
  const today = now.getUTCDay() || 7;
  const yesterday = today === 1 ? 7 : today - 1;
  const open = schedule.filter(({ start, end, days = [1, 2, 3, 4, 5, 6, 7] }) => {
    const [begins, ends] = [minutes(start), minutes(end)];
    const last = ends <= begins ? ends + MINUTES_OF_DAY : ends;
    return (days.includes(today) && minute >= begins && minute < last) || (days.includes(yesterday) && minute + MINUTES_OF_DAY < last);
  });
  return Math.min(rate_bytes_per_s, ...open.map((window) => window.rate_bytes_per_s));
}

function pairOf(one: string, other: string): string {
  return JSON.stringify([one, other].sort());
}

interface Flow {
  flow: number;
  moves: number;
}

function flows(migrations: readonly Migration[], siteOf: ReadonlyMap<string, string>): Map<string, Flow> {
  const found = new Map<string, Flow>();
  for (const { phase, source, target, progress } of migrations) {
    const [one, other] = [siteOf.get(source), siteOf.get(target)];
    if (!isUnderWay(phase) || one === undefined || other === undefined) continue;
    const known = found.get(pairOf(one, other)) ?? { flow: 0, moves: 0 };
    found.set(pairOf(one, other), { flow: known.flow + (phase === "transferring" ? progress.rate_bytes_per_s : 0), moves: known.moves + 1 });
  }
  return found;
}

/** Sites stand in a circle, two side by side, in the order of their names, so that a map looks the same each time. */
function place(index: number, count: number): { x: number; y: number } {
  if (count === 1) return { x: WIDTH / 2, y: HEIGHT / 2 };
  const angle = Math.PI + (2 * Math.PI * index) / count;
  return { x: WIDTH / 2 + (WIDTH / 2 - MARGIN_X) * Math.cos(angle), y: HEIGHT / 2 + (HEIGHT / 2 - MARGIN_Y) * Math.sin(angle) };
}

export function siteMap(nodes: readonly Node[], links: readonly Link[], migrations: readonly Migration[], now: Date): SiteMap {
  const siteOf = new Map(nodes.map((node) => [node.name, node.spec.site]));
  const found = flows(migrations, siteOf);
  const names = [...new Set([...siteOf.values(), ...links.flatMap((link) => link.sites)])].sort();
  const sites = names.map((name, index) => {
    const there = nodes.filter((node) => node.spec.site === name);
    const { flow, moves } = found.get(pairOf(name, name)) ?? { flow: 0, moves: 0 };
    return { name, ...place(index, names.length), nodes: there.length, ready: there.filter((node) => node.status.ready).length, flow, moves };
  });
  const at = new Map(sites.map((site) => [site.name, site]));
  const limits = new Map(links.map((link) => [pairOf(link.sites[0] ?? "", link.sites[1] ?? link.sites[0] ?? ""), limitAt(link.spec, now)]));
  const drawn = [...new Set([...limits.keys(), ...found.keys()])].sort().flatMap((pair) => {
    const [one = "", other = ""] = JSON.parse(pair) as string[];
    const [from, to] = [at.get(one), at.get(other)];
    if (one === other || from === undefined || to === undefined) return [];
    const { flow, moves } = found.get(pair) ?? { flow: 0, moves: 0 };
    return [{ sites: [one, other] as [string, string], from: { x: from.x, y: from.y }, to: { x: to.x, y: to.y }, limit: limits.get(pair) ?? null, flow, moves }];
  });
  return { sites, links: drawn };
}
