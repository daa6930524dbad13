import { describe, expect, it } from "vitest";
import { draw, type Reachable, ways } from "./reach";

const world = (changes: Record<string, unknown[]>): Reachable => ({ networks: [], groups: [], addresses: [], forwards: [], ...changes }) as unknown as Reachable;
const network = (name: string, spec: Record<string, unknown>, project = "default"): unknown => ({ name, project, spec: { kind: "overlay", nat: true, ...spec } });
const written = (known: Reachable): string[] => ways(known).map(({ from, to, by }) => `${from.name} > ${to.name}: ${by.join(", ")}`);

describe("what can reach what", () => {
  it("says how guests of a network reach one another and what is outside", () => {
    expect(written(world({ networks: [network("web", {}), network("dark", { nat: false }), network("hosts", { kind: "bridge", nat: false })] }))).toEqual(["web > web: any", "web > outside: any", "dark > dark: any", "hosts > hosts: any", "outside > hosts: any", "hosts > outside: any"]);
  });

  it("joins what leads to the same VM", () => {
    const forwards = [
      { vm_name: "shop", protocol: "tcp", port: 8080, vm_port: 80 },
      { vm_name: "shop", protocol: "tcp", port: 443, vm_port: 443 },
    ];
    const addresses = [{ vm_name: "shop", address: "192.0.2.7" }, { vm_name: null, address: "192.0.2.8" }];
    expect(written(world({ addresses, forwards }))).toEqual(["outside > shop: 192.0.2.7, tcp 8080 → 80, tcp 443"]);
  });

  it("turns rules into ways, out as well as in, and tells projects apart", () => {
    const groups = [
      { name: "db", project: "a", rules: [{ direction: "in", protocol: "tcp", ports: "5432", group: "web" }, { direction: "out", protocol: "udp", ports: "53", cidr: "10.0.0.0/8" }] },
      { name: "web", project: "b", rules: [{}] },
    ];
    expect(written(world({ groups }))).toEqual(["@a/web > @a/db: tcp 5432", "@a/db > 10.0.0.0/8: udp 53", "anyone > @b/web: any"]);
  });

  it("draws each end once, and no more ways than may be", () => {
    const networks = Array.from({ length: 9 }, (_, index) => network(`n${index}`, {}));
    const drawn = draw(ways(world({ networks })), 6);
    expect(drawn.lines).toHaveLength(6);
    expect(drawn.left.map(({ end }) => end.name)).toEqual(["n0", "n1", "n2"]);
    expect(drawn.right.map(({ end }) => end.name)).toEqual(["outside", "n0", "n1", "n2"]);
    expect(drawn.height).toBe(4 * 44);
  });
});
