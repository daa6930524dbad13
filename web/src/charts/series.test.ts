import { describe, expect, it } from "vitest";
import { ofHours, rates, withSample } from "./series";

describe("series", () => {
  it("keeps no more samples than it may, the newest of them all", () => {
    let samples: number[] = [];
    for (let number = 0; number < 1000; number++) samples = withSample(samples, number, 50);
    expect(samples.length).toBeLessThanOrEqual(50);
    expect(samples.slice(-20)).toEqual(Array.from({ length: 20 }, (_, index) => 980 + index));
    expect(samples[0]).toBe(0);
    expect(samples).toEqual([...samples].sort((one, other) => one - other));
  });

  it("makes rates of counters, and none over a move, a restart or a look that was repeated", () => {
    const look = (at_s: number, cpu_s: number | null, node = "a"): Parameters<typeof rates>[0][number] => ({ at_s, node, cpu_s });
    expect(rates([look(0, 1), look(2, 5), look(2, 5), look(4, 0), look(6, 1), look(8, 2, "b"), look(10, null)], "cpu_s")).toEqual([null, 2, null, null, 0.5, null, null]);
  });

  it("leaves a gap where hours are not known", () => {
    const hour = (at: string): Parameters<typeof ofHours>[0][number] => ({ hour: `2026-01-01T${at}:00:00Z`, cpu_peak: 2, cpu_mean: 1 });
    const { times, peaks, means } = ofHours([hour("01"), hour("02"), hour("05")]);
    expect(peaks).toEqual([2, 2, null, 2]);
    expect(means).toEqual([1, 1, null, 1]);
    expect(times.map((at) => (at - (times[0] ?? 0)) / 3600)).toEqual([0, 1, 2, 4]);
  });
});
