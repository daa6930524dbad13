/** Rules of security groups as one line of text, written as the command line writes them. */
import type { SecurityGroup } from "./api";

type Rule = SecurityGroup["rules"][number];
type Direction = NonNullable<Rule["direction"]>;
type Protocol = NonNullable<Rule["protocol"]>;

export const PROTOCOLS = Object.keys({ tcp: true, udp: true, icmp: true, any: true } satisfies Record<Protocol, true>) as Protocol[];

/** `in:tcp:443`, `in:tcp:8000-8099:10.0.0.0/8`, `in:any::@web`. */
export function ruleText({ direction = "in", protocol = "any", ports, cidr, group }: Rule): string {
  const where = group != null ? `@${group}` : (cidr ?? "");
  return [direction, protocol, ports ?? "", where].join(":").replace(/:+$/, "");
}

export function ruleOf(text: string): Rule {
  const [direction = "", protocol = "", ports = "", ...rest] = text.split(":");
  const where = rest.join(":"); // of IPv6, addresses have colons themselves
  return {
    direction: direction as Direction, // the server refuses what it does not know, with words
    protocol: protocol as Protocol,
    ports: ports === "" ? null : ports,
    cidr: where === "" || where.startsWith("@") ? null : where,
    group: where.startsWith("@") ? where.slice(1) : null,
  };
}
