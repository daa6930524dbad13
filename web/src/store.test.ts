import { describe, expect, it } from "vitest";
import type { Event, Vm } from "./api";
import { type Change, EVENTS_MAX, ObjectStore, REMEMBERED_MS } from "./store";

const vm = (id: string, revision: number, name = id): Vm => ({ id, name, revision }) as unknown as Vm;

describe("ObjectStore", () => {
  it("applies a revision when it is complete, not before", () => {
    const store = new ObjectStore();
    store.admit("vm", [vm("a", 1), vm("b", 1)], 1);
    store.receive({ kind: "vm", object: vm("a", 2, "renamed") });
    expect(store.get("vm", "a")?.name).toBe("a");
    store.receive({ kind: "vm", deleted: "b", revision: 2 });
    expect(store.get("vm", "a")?.name).toBe("renamed");
    expect(store.get("vm", "b")).toBeUndefined();
    expect(store.revision).toBe(2);
  });

  it("forgets an incomplete revision when the stream breaks off", () => {
    const store = new ObjectStore();
    store.admit("vm", [vm("a", 1)], 1);
    store.receive({ kind: "vm", object: vm("a", 2, "half") });
    store.interrupted();
    store.receive({ revision: 1 });
    expect(store.get("vm", "a")?.name).toBe("a");
    expect(store.revision).toBe(1);
  });

  it("ignores what is older than what it has", () => {
    const store = new ObjectStore();
    store.admit("vm", [vm("a", 5, "new")], 5);
    store.admit("vm", [vm("a", 4, "old")], 4);
    store.receive({ kind: "vm", object: vm("a", 3, "older"), revision: 3 });
    expect(store.get("vm", "a")?.name).toBe("new");
    expect(store.revision).toBe(3);
    store.receive({ revision: 2 });
    expect(store.revision).toBe(3);
  });

  it("does not let an answer of before bring back what was deleted meanwhile", async () => {
    const store = new ObjectStore();
    await store.asking(async () => {
      store.receive({ kind: "vm", deleted: "a", revision: 9 });
      await Promise.resolve();
      expect(store.admit("vm", [vm("a", 3), vm("b", 4)], 8)).toEqual(["b"]);
    });
    expect(store.get("vm", "a")).toBeUndefined();
  });

  it("prefers a change that came before the older answer that first names its object", async () => {
    const store = new ObjectStore();
    await store.asking(async () => {
      store.receive({ kind: "vm", object: vm("a", 9, "new"), revision: 9 });
      expect(store.get("vm", "a")).toBeUndefined();
      await Promise.resolve();
      store.admit("vm", [vm("a", 3, "old")], 8);
    });
    expect(store.get("vm", "a")?.name).toBe("new");
  });

  it("remembers changes until the last answer that was under way has come", async () => {
    const store = new ObjectStore();
    let answer = (): void => undefined;
    const slow = store.asking(() => new Promise<void>((come) => (answer = come)));
    await store.asking(() => Promise.resolve());
    store.receive({ kind: "vm", deleted: "a", revision: 5 });
    expect(store.admit("vm", [vm("a", 3)], 4)).toEqual([]);
    answer();
    await slow;
    expect(store.admit("vm", [vm("a", 3)], 4)).toEqual(["a"]);
  });

  it("remembers changes for no longer than a while, whatever is under way", () => {
    let now = 0;
    const store = new ObjectStore(() => now);
    void store.asking(() => new Promise(() => undefined));
    store.receive({ kind: "vm", deleted: "a", revision: 1 });
    now = REMEMBERED_MS + 1;
    store.receive({ revision: 2 });
    expect(store.admit("vm", [vm("a", 3)], 0)).toEqual(["a"]);
  });

  it("tells each listener of its object only, and what was before", () => {
    const store = new ObjectStore();
    store.admit("vm", [vm("a", 1), vm("b", 1)], 1);
    let ofA = 0;
    const all: Change[] = [];
    const end = store.subscribe("vm", "a", () => ofA++);
    store.onChanges((changes) => all.push(...changes));
    store.receive({ kind: "vm", object: vm("b", 2), revision: 2 });
    store.receive({ kind: "vm", object: vm("a", 3), revision: 3 });
    end();
    store.receive({ kind: "vm", object: vm("a", 4), revision: 4 });
    expect(ofA).toBe(1);
    expect(all.map(({ key, old, now }) => [key, old?.revision, now?.revision])).toEqual([
      ["b", 1, 2],
      ["a", 1, 3],
      ["a", 3, 4],
    ]);
  });

  it("keeps no more events than it may", () => {
    const store = new ObjectStore();
    const events = Array.from({ length: EVENTS_MAX + 10 }, (_, id) => ({ id, revision: id + 1 }) as unknown as Event);
    store.admit("event", events, EVENTS_MAX + 10);
    expect(store.all("event")).toHaveLength(EVENTS_MAX);
    expect(store.get("event", "0")).toBeUndefined();
  });
});
