import { expect, it } from "vitest";
import { addresses, bytes, countVms, duration, memory, mib, percent, processors, time, utc } from "./format";

it("writes bytes with three digits and a unit", () => {
  expect([0, 1023, 1536, 10 * 1024, 123 * 1024 ** 2, 5 * 1024 ** 5, -2048].map(bytes)).toEqual([
    "0 B", "1023 B", "1.50 KiB", "10.0 KiB", "123 MiB", "5.00 PiB", "-2.00 KiB",
  ]);
  expect(mib(256)).toBe("256 MiB");
});

it("writes durations as people say them", () => {
  expect([0.84, 12, 60, 185, 7440, 273_600, -1, Number.NaN].map(duration)).toEqual([
    "0.8 s", "12 s", "1 min 0 s", "3 min 5 s", "2 h 4 min", "3 d 4 h", "-", "-",
  ]);
});

it("never shows more than all, or less than nothing", () => {
  expect([percent(1, 4), percent(5, 4), percent(-1, 4), percent(1, 0), percent(1, Number.NaN)]).toEqual([25, 100, 0, 0, 0]);
});

it("leaves what is no time as it is", () => {
  expect(time("soon")).toBe("soon");
  expect(utc("2026-01-02T03:04:05.678Z")).toBe("2026-01-02 03:04:05 UTC");
});

it("says what a VM has of its node for itself", () => {
  expect([
    processors({ vcpus: 2, cpu_policy: "shared", numa_nodes: 2 }),
    processors({ vcpus: 4, cpu_policy: "shared", numa_nodes: 1 }),
    processors({ vcpus: 4, cpu_policy: "dedicated", numa_nodes: 2 }),
  ]).toEqual(["2, 2 NUMA nodes", "4", "4, dedicated, 2 NUMA nodes"]);
  expect([memory({ memory_mib: 256, hugepages: "none" }), memory({ memory_mib: 4096, hugepages: "1G" })]).toEqual(["256 MiB", "4.00 GiB, in huge pages of 1G"]);
});

it("says where a network's guests are", () => {
  const none = { subnet: null, subnet6: null, bridge: null, vlan: null };
  expect([
    addresses(none),
    addresses({ ...none, subnet: "10.1.0.0/24", subnet6: "fd00::/64" }),
    addresses({ ...none, bridge: "br1", vlan: 40 }),
  ]).toEqual(["-", "10.1.0.0/24, fd00::/64", "br1, VLAN 40"]);
});

it("counts in words", () => {
  expect([countVms(1), countVms(2), countVms(0)]).toEqual(["1 VM", "2 VMs", "0 VMs"]);
});
