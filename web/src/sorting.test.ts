import { describe, expect, it } from "vitest";
import { movesBy, sortIn } from "./sorting";

const COLUMNS = [{ sort: "name" }, { sort: "spec.site" }, {}];
const sorted = (search: string, name = "sort"): string => sortIn(new URLSearchParams(search), name, "name", COLUMNS);

describe("the order of a list", () => {
  it("is the address's where a column has it, in both directions", () => {
    expect([sorted("sort=spec.site"), sorted("sort=-spec.site"), sorted("")]).toEqual(["spec.site", "-spec.site", "name"]);
  });

  it("is the usual one where the address asks for what no column has", () => {
    expect(["sort=", "sort=-", "sort=--name", "sort=<b>", "sort=undefined"].map((search) => sorted(search))).toEqual(Array(5).fill("name"));
  });

  it("is not that of another list of the page", () => {
    expect(sorted("sort=spec.site&drain-sort=-name", "drain-sort")).toBe("-name");
  });

  it("follows changes of the field that it is by, and of no other", () => {
    const node = { name: "a", spec: { site: "x" } };
    const elsewhere = { name: "a", spec: { site: "y" } };
    expect([movesBy("-spec.site")(node, elsewhere), movesBy("name")(node, elsewhere)]).toEqual([true, false]);
    expect(movesBy("spec.site")({ spec: null }, node)).toBe(true);
    expect(movesBy("spec.site")({}, { spec: null })).toBe(false);
  });
});
