/** What charts draw: values over time, kept within limits. */

export interface Series {
  label: string;
  /** One for each time; null: not known. */
  values: readonly (number | null)[];
}

/** A value in words. */
export function at(values: readonly (number | null)[], index: number, format: (value: number) => string): string {
  const value = values[index];
  return value == null ? "-" : format(value);
}

export const SAMPLES_MAX = 600;

/** Add a sample; of too many, every other one is left out of the older half. */
export function withSample<T>(samples: readonly T[], sample: T, most: number = SAMPLES_MAX): T[] {
  const all = [...samples, sample];
  if (all.length <= most) return all;
  const half = Math.floor(all.length / 2);
  return all.filter((_, index) => index >= half || index % 2 === 0);
}

export interface Counters {
  at_s: number;
  node: string;
  cpu_s?: number | null;
  disk_read_bytes?: number | null;
  disk_written_bytes?: number | null;
  network_received_bytes?: number | null;
  network_sent_bytes?: number | null;
}

export type Counter = Exclude<keyof Counters, "at_s" | "node">;

/** How fast a counter grew from each look to the next; null where another QEMU began meanwhile, and for the first. */
export function rates(looks: readonly Counters[], counter: Counter): (number | null)[] {
  return looks.map((now, index) => {
    const before = looks[index - 1];
    const [from, to] = [before?.[counter], now[counter]];
    if (before === undefined || from == null || to == null || before.node !== now.node || now.at_s <= before.at_s || to < from) return null;
    return (to - from) / (now.at_s - before.at_s);
  });
}

const HOUR_S = 3600;

export interface PastHour {
  hour: string;
  cpu_peak: number;
  cpu_mean: number;
}

/** Hours as times and values; hours that are not known leave a gap. */
export function ofHours(hours: readonly PastHour[]): { times: number[]; peaks: (number | null)[]; means: (number | null)[] } {
  const times: number[] = [];
  const peaks: (number | null)[] = [];
  const means: (number | null)[] = [];
  for (const { hour, cpu_peak, cpu_mean } of hours) {
    const began = Date.parse(hour) / 1000;
    const last = times[times.length - 1];
    if (last !== undefined && began > last + HOUR_S) {
      times.push(last + HOUR_S);
      peaks.push(null);
      means.push(null);
    }
    times.push(began);
    peaks.push(cpu_peak);
    means.push(cpu_mean);
  }
  return { times, peaks, means };
}
