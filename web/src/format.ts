/** How figures and times are written. */
import type { Network, Vm } from "./api";
import { t } from "./i18n";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] as const;

/** Bytes with a unit and three digits: 1536 is "1.50 KiB". */
export function bytes(count: number): string {
  let value = Math.abs(count);
  let unit = 0;
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${count < 0 ? "-" : ""}${value.toFixed(digits)} ${UNITS[unit] ?? ""}`;
}

export function mib(count: number): string {
  return bytes(count * 1024 * 1024);
}

/** A VM's virtual CPUs: "4, dedicated, 2 NUMA nodes". */
export function processors({ vcpus, cpu_policy, numa_nodes }: Pick<Vm["spec"], "vcpus" | "cpu_policy" | "numa_nodes">): string {
  const parts = [String(vcpus)];
  if (cpu_policy === "dedicated") parts.push(t("dedicated"));
  if (numa_nodes > 1) parts.push(t("{count} NUMA nodes", { count: numa_nodes }));
  return parts.join(", ");
}

/** A VM's memory: "4.00 GiB, in huge pages of 2M". */
export function memory({ memory_mib, hugepages }: Pick<Vm["spec"], "memory_mib" | "hugepages">): string {
  const size = mib(memory_mib);
  return hugepages === "none" ? size : t("{size}, in huge pages of {pages}", { size, pages: hugepages });
}

/** Where a network's guests are: subnets, or the hosts' bridge: "br1, VLAN 40". */
export function addresses({ subnet, subnet6, bridge, vlan }: Pick<Network["spec"], "subnet" | "subnet6" | "bridge" | "vlan">): string {
  const parts = [subnet, subnet6, bridge, vlan === null ? null : t("VLAN {vlan}", { vlan })];
  return parts.filter((part) => part !== null).join(", ") || "-";
}

/** Seconds: "0.8 s", "12 s", "3 min 5 s", "2 h 4 min", "3 d 4 h". */
export function duration(seconds: number): string {
  if (!Number.isFinite(seconds) || seconds < 0) return "-";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86_400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86_400)} d ${Math.floor((whole % 86_400) / 3600)} h`;
}

const LOCAL = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** A time in the reader's zone. */
export function time(iso: string): string {
  const at = new Date(iso);
  return Number.isNaN(at.getTime()) ? iso : LOCAL.format(at);
}

/** The same in UTC, for the hover text. */
export function utc(iso: string): string {
  const at = new Date(iso);
  return Number.isNaN(at.getTime()) ? iso : at.toISOString().replace("T", " ").replace(/\.\d+Z$/, " UTC");
}

/** The part of a whole in percent, 0 to 100. */
export function percent(part: number, whole: number): number {
  if (!(whole > 0)) return 0;
  return Math.max(0, Math.min(100, (100 * part) / whole));
}

export function countVms(count: number): string {
  return count === 1 ? t("1 VM") : t("{count} VMs", { count });
}
