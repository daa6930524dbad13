import { describe, expect, it } from "vitest";
import type { Link, Migration, Node } from "../api";
import { HEIGHT, limitAt, siteMap, WIDTH } from "./site_map";

const node = (name: string, site: string, ready = true): Node => ({ name, spec: { site }, status: { ready } }) as unknown as Node;
const link = (one: string, other: string, rate: number): Link => ({ sites: [one, other], spec: { rate_bytes_per_s: rate, schedule: [] } }) as unknown as Link;
const move = (source: string, target: string, rate: number, phase = "transferring"): Migration => ({ source, target, phase, progress: { rate_bytes_per_s: rate } }) as unknown as Migration;
const NOON = new Date("2026-01-05T12:00:00Z"); // a Monday

describe("the map of sites", () => {
  it("adds up what flows between two sites, whichever way, and says what may", () => {
    const nodes = [node("a", "east"), node("b", "west"), node("c", "west", false)];
    const map = siteMap(nodes, [link("west", "east", 1000)], [move("a", "b", 300), move("c", "a", 200), move("b", "c", 50), move("a", "b", 99, "completed"), move("a", "b", 7, "pending")], NOON);
    expect(map.links).toHaveLength(1);
    expect(map.links[0]).toMatchObject({ sites: ["east", "west"], limit: 1000, flow: 500, moves: 3 });
    expect(map.sites.map(({ name, nodes: count, ready, flow }) => [name, count, ready, flow])).toEqual([
      ["east", 1, 1, 0],
      ["west", 2, 1, 50],
    ]);
  });

  it("shows what flows without a limit, a limit of a site that has no node, and nothing of a node that is not known", () => {
    const map = siteMap([node("a", "east"), node("b", "west")], [link("east", "moon", 5)], [move("a", "b", 1), move("a", "gone", 1)], NOON);
    expect(map.links.map(({ sites, limit }) => [sites.join(), limit])).toEqual([
      ["east,moon", 5],
      ["east,west", null],
    ]);
  });

  it("leaves every site within the drawing", () => {
    for (let count = 1; count < 30; count++) {
      const { sites } = siteMap(Array.from({ length: count }, (_, index) => node(`n${index}`, `site-${index}`)), [], [], NOON);
      for (const { x, y } of sites) expect(x >= 0 && x <= WIDTH && y >= 0 && y <= HEIGHT).toBe(true);
    }
  });

  it("obeys the windows of a link, also those that end on the next day", () => {
    const spec = { rate_bytes_per_s: 1000, schedule: [{ start: "08:00", end: "18:00", rate_bytes_per_s: 200, days: [1, 2] }, { start: "22:00", end: "06:00", rate_bytes_per_s: 300, days: [7] }] };
    const at = (time: string): number => limitAt(spec, new Date(`2026-01-${time}:00Z`));
    expect([at("05T12:00"), at("05T18:00"), at("07T12:00"), at("04T23:00"), at("05T05:59"), at("05T06:00"), at("06T05:59")]).toEqual([200, 1000, 1000, 300, 300, 1000, 1000]);
  });
});
