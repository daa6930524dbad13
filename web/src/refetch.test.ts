import { expect, it } from "vitest";
import type { Vm } from "./api";
import { type ListMeta, REFETCH_MS, REFETCH_PARTIAL_MS, refetchDelay } from "./refetch";
import type { Change } from "./store";

const vm = (name: string): Vm => ({ id: name, name }) as unknown as Vm;
const meta: ListMeta = {
  kind: "vm",
  belongs: (object) => (object as Vm).name.startsWith("web"),
  moves: (old, now) => (old as Vm).name !== (now as Vm).name,
};
const change = (old: Vm | undefined, now: Vm | null): Change => ({ kind: "vm", key: "k", old, now });

it("asks again for a list that a change adds to, takes from or reorders, and for no other", () => {
  expect(refetchDelay(change(undefined, vm("web-1")), meta, true)).toBe(REFETCH_MS);
  expect(refetchDelay(change(undefined, vm("web-1")), meta, false)).toBe(REFETCH_PARTIAL_MS);
  expect(refetchDelay(change(undefined, vm("db-1")), meta, true)).toBeNull();
  expect(refetchDelay(change(vm("web-1"), vm("web-2")), meta, true)).toBe(REFETCH_MS);
  expect(refetchDelay(change(vm("web-1"), vm("web-1")), meta, true)).toBeNull();
  expect(refetchDelay(change(vm("web-1"), null), meta, false)).toBe(REFETCH_MS);
  expect(refetchDelay(change(undefined, null), meta, true)).toBeNull();
  expect(refetchDelay({ ...change(undefined, vm("web-1")), kind: "node" } as Change, meta, true)).toBeNull();
});
