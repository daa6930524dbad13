import { describe, expect, it } from "vitest";
import { type Dropped, HELD_MAX, HeldRequests, HOLD_MS, LATE_MS_MAX, type Request } from "./held";

function world(): { requests: HeldRequests; pass: (ms: number) => void; sent: string[]; dropped: [string, Dropped][] } {
  let now = 0;
  const sent: string[] = [];
  const dropped: [string, Dropped][] = [];
  const timers = new Set<{ at: number; call: () => void }>();
  const fire = (): void => {
    for (const timer of [...timers].filter(({ at }) => at <= now)) {
      timers.delete(timer);
      timer.call();
    }
  };
  const requests = new HeldRequests({
    now: () => now,
    later: (call, ms) => {
      const timer = { at: now + ms, call };
      timers.add(timer);
      return () => timers.delete(timer);
    },
    dropped: (held, why) => dropped.push([held.title, why]),
  });
  const pass = (ms: number): void => {
    now += ms;
    fire();
  };
  return { requests, pass, sent, dropped };
}

describe("HeldRequests", () => {
  const request = (title: string, sent: string[]): Request => ({ title, names: [], keys: [title], send: () => sent.push(title) });

  it("sends a request once, when its time has come and not before", () => {
    const { requests, pass, sent, dropped } = world();
    expect(requests.hold(request("a", sent))).toBe(true);
    pass(HOLD_MS - 1);
    expect([sent, requests.all.length]).toEqual([[], 1]);
    pass(1);
    pass(HOLD_MS);
    expect([sent, dropped, requests.all.length]).toEqual([["a"], [], 0]);
  });

  it("never sends what was undone, and leaves the others", () => {
    const { requests, pass, sent, dropped } = world();
    for (const title of ["a", "b", "c"]) requests.hold(request(title, sent));
    requests.undo(requests.all[0]?.id ?? -1);
    requests.undoNewest();
    requests.undo(99);
    pass(HOLD_MS);
    expect(sent).toEqual(["b"]);
    expect(dropped).toEqual([["a", "undone"], ["c", "undone"]]);
  });

  it("sends at once what nobody wants to wait for, and not again", () => {
    const { requests, pass, sent } = world();
    requests.hold(request("a", sent));
    const id = requests.all[0]?.id ?? -1;
    requests.sendNow(id);
    requests.sendNow(id);
    pass(HOLD_MS);
    expect(sent).toEqual(["a"]);
  });

  it("sends a little late, as pages in the background do, but not after the computer has slept", () => {
    const { requests, pass, sent, dropped } = world();
    requests.hold(request("a", sent));
    pass(HOLD_MS + LATE_MS_MAX);
    requests.hold(request("b", sent));
    pass(HOLD_MS + LATE_MS_MAX + 1);
    expect([sent, dropped]).toEqual([["a"], [["b", "late"]]]);
  });

  it("sends nothing after the end of a session, or when the page is left", () => {
    const { requests, pass, sent, dropped } = world();
    requests.hold(request("a", sent));
    requests.hold(request("b", sent));
    requests.end();
    pass(HOLD_MS);
    expect([sent, dropped, requests.all.length]).toEqual([[], [["a", "ended"], ["b", "ended"]], 0]);
  });

  it("holds a limited number, and says so", () => {
    const { requests, sent } = world();
    for (let count = 0; count < HELD_MAX; count += 1) expect(requests.hold(request(`${count}`, sent))).toBe(true);
    expect(requests.hold(request("one more", sent))).toBe(false);
    expect([sent, requests.all.length]).toEqual([[], HELD_MAX]);
  });
});
