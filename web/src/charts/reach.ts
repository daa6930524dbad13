/** What can reach what: networks, addresses and ports that lead into them, and rules of security groups, as ways from left to right. Pure. */
import type { FloatingAddress, Forward, Network, SecurityGroup } from "../api";
import { m } from "../i18n";

/** `named`: its name is what people chose, else a text to translate. */
export interface End {
  kind: "outside" | "addresses" | "network" | "group" | "vm";
  name: string;
  named: boolean;
}

export interface Way {
  from: End;
  to: End;
  /** Protocols and ports, as rules write them. */
  by: string[];
}

const OUTSIDE: End = { kind: "outside", name: m("outside"), named: false };
const ANYONE: End = { kind: "outside", name: m("anyone"), named: false };

function nameIn(project: string, name: string, several: boolean): string {
  return several ? `${project}/${name}` : name;
}

type Rule = SecurityGroup["rules"][number];

function otherEnd({ cidr, group }: Rule, ofGroup: (name: string) => End): End {
  if (group != null) return ofGroup(group);
  return cidr != null ? { kind: "addresses", name: cidr, named: true } : ANYONE;
}

function passes({ protocol = "any", ports }: Rule): string {
  return ports == null ? protocol : `${protocol} ${ports}`;
}

export interface Reachable {
  networks: readonly Network[];
  groups: readonly SecurityGroup[];
  addresses: readonly FloatingAddress[];
  forwards: readonly Forward[];
}

/** All ways, those from and to the same ends as one. */
export function ways({ networks, groups, addresses, forwards }: Reachable): Way[] {
  const several = new Set([...networks, ...groups].map(({ project }) => project)).size > 1;
  const found = new Map<string, Way>();
  const add = (from: End, to: End, by: string): void => {
    const key = JSON.stringify([from.kind, from.name, to.kind, to.name]);
    const way = found.get(key) ?? { from, to, by: [] };
    if (!way.by.includes(by)) way.by.push(by);
    found.set(key, way);
  };
  for (const { name, project, spec } of networks) {
    const network: End = { kind: "network", name: nameIn(project, name, several), named: true };
    add(network, network, "any");
    if (spec.kind === "bridge") {
      add(OUTSIDE, network, "any");
      add(network, OUTSIDE, "any");
    } else if (spec.nat) add(network, OUTSIDE, "any");
  }
  const vm = (name: string): End => ({ kind: "vm", name, named: true });
  for (const { vm_name, address } of addresses) if (vm_name !== null) add(OUTSIDE, vm(vm_name), address);
  for (const { vm_name, protocol, port, vm_port } of forwards) add(OUTSIDE, vm(vm_name), port === vm_port ? `${protocol} ${port}` : `${protocol} ${port} → ${vm_port}`);
  for (const { name, project, rules } of groups) {
    const ofGroup = (group: string): End => ({ kind: "group", name: `@${nameIn(project, group, several)}`, named: true });
    for (const rule of rules) {
      const other = otherEnd(rule, ofGroup);
      if (rule.direction === "out") add(ofGroup(name), other, passes(rule));
      else add(other, ofGroup(name), passes(rule));
    }
  }
  return [...found.values()];
}

export interface Drawn {
  left: { end: End; y: number }[];
  right: { end: End; y: number }[];
  lines: { way: Way; from: number; to: number }[];
  height: number;
}

const ROW_PX = 44;
const KINDS: readonly End["kind"][] = ["outside", "addresses", "network", "group", "vm"];

function column(ends: readonly End[]): { end: End; y: number }[] {
  const once = [...new Map(ends.map((end) => [`${end.kind} ${end.name}`, end])).values()];
  once.sort((one, other) => KINDS.indexOf(one.kind) - KINDS.indexOf(other.kind) || one.name.localeCompare(other.name));
  return once.map((end, index) => ({ end, y: ROW_PX * (index + 0.5) }));
}

/** Where each end and each way is, the first `most` ways of them. */
export function draw(all: readonly Way[], most: number): Drawn {
  const shown = all.slice(0, most);
  const [left, right] = [column(shown.map(({ from }) => from)), column(shown.map(({ to }) => to))];
  const at = (ends: typeof left, { kind, name }: End): number => ends.find(({ end }) => end.kind === kind && end.name === name)?.y ?? 0;
  const lines = shown.map((way) => ({ way, from: at(left, way.from), to: at(right, way.to) }));
  return { left, right, lines, height: ROW_PX * Math.max(1, left.length, right.length) };
}
