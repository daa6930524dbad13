import { describe, expect, it } from "vitest";
import { chosen, idOf, leastWidth, moved, shown, toggled, usual, written } from "./columns";

const COLUMNS = [{ title: "Name" }, { title: "Can't be backed up" }, { title: "Tags", extra: true }, { title: "Size" }, { title: "" }];

describe("the columns of a list", () => {
  it("are called as their titles are", () => {
    expect(COLUMNS.map(idOf)).toEqual(["name", "can-t-be-backed-up", "tags", "size", ""]);
    expect(usual(COLUMNS)).toEqual(["name", "can-t-be-backed-up", "size"]);
  });

  it("are as the address says, else as the reader has chosen before, else as usual", () => {
    expect(chosen(COLUMNS, "size,tags", "name")).toEqual(["size", "tags"]);
    expect(chosen(COLUMNS, null, "name")).toEqual(["name"]);
    expect(chosen(COLUMNS, null, null)).toEqual(usual(COLUMNS));
  });

  it("leave out what an address makes up", () => {
    expect(chosen(COLUMNS, "<script>,size,,size,__proto__,constructor", null)).toEqual(["size"]);
    expect(chosen(COLUMNS, ",,nothing", "")).toEqual(usual(COLUMNS));
    expect(shown(COLUMNS, ["nothing", "size"]).map(({ title }) => title)).toEqual(["Size", ""]);
  });

  it("take no place in an address while they are the usual ones", () => {
    expect(written(COLUMNS, usual(COLUMNS))).toBe("");
    expect(written(COLUMNS, ["size", "name", "can-t-be-backed-up"])).toBe("size,name,can-t-be-backed-up");
  });

  it("are added at the end and taken away, but for the last one", () => {
    expect(toggled(["name"], "tags")).toEqual(["name", "tags"]);
    expect(toggled(["name", "tags"], "name")).toEqual(["tags"]);
    expect(toggled(["tags"], "tags")).toEqual(["tags"]);
  });

  it("are as wide together as their least widths and gaps", () => {
    expect(leastWidth(["2.5rem", "minmax(12rem, 2fr)", "9rem"])).toBe(26);
  });

  it("move by one place, and not beyond the ends", () => {
    expect(moved(["a", "b", "c"], "b", 1)).toEqual(["a", "c", "b"]);
    expect(moved(["a", "b", "c"], "b", -1)).toEqual(["b", "a", "c"]);
    expect(moved(["a", "b"], "a", -1)).toEqual(["a", "b"]);
    expect(moved(["a", "b"], "b", 1)).toEqual(["a", "b"]);
    expect(moved(["a", "b"], "c", 1)).toEqual(["a", "b"]);
  });
});
