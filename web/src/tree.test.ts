import { describe, expect, it } from "vitest";
import type { Snapshot } from "./api";
import { type Branch, treeOf } from "./tree";

const snapshot = (id: string, parent: string | null, created_at: string): Snapshot => ({ id, parent, created_at }) as unknown as Snapshot;
const ids = (branches: readonly Branch[]): unknown[] => branches.map(({ snapshot: { id }, children }) => (children.length === 0 ? id : [id, ids(children)]));

describe("treeOf", () => {
  it("puts each snapshot under the one before it, oldest first", () => {
    const given = [snapshot("c", "a", "3"), snapshot("b", "a", "2"), snapshot("a", null, "1"), snapshot("d", "c", "4")];
    expect(ids(treeOf(given))).toEqual([["a", ["b", ["c", ["d"]]]]]);
  });

  it("keeps what followed a snapshot that is gone", () => {
    expect(ids(treeOf([snapshot("b", "gone", "2"), snapshot("a", null, "1")]))).toEqual(["a", "b"]);
  });
});
