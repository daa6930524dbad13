import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { SILENCE_MS, type Socket, Watch, type WatchState } from "./watch";

class FakeSocket implements Socket {
  onmessage: Socket["onmessage"] = null;
  onclose: Socket["onclose"] = null;
  closed = false;
  readonly after: number | null;
  constructor(after: number | null) {
    this.after = after;
  }
  close(): void {
    this.closed = true;
  }
  say(message: object): void {
    this.onmessage?.({ data: JSON.stringify(message) } as MessageEvent<unknown>);
  }
  end(code: number): void {
    this.onclose?.({ code } as CloseEvent);
  }
}

function world() {
  const sockets: FakeSocket[] = [];
  const seen = { states: [] as WatchState[], restarted: [] as number[], interrupted: 0, ended: 0 };
  let revision: number | null = null;
  const watch = new Watch(
    (after) => {
      const socket = new FakeSocket(after);
      sockets.push(socket);
      return socket;
    },
    {
      after: () => revision,
      message: (message) => {
        revision = Number(message["revision"]);
      },
      restarted: (at) => {
        revision = at;
        seen.restarted.push(at);
      },
      interrupted: () => seen.interrupted++,
      sessionEnded: () => seen.ended++,
      changed: (state) => seen.states.push(state),
    },
  );
  const last = (): FakeSocket => {
    const socket = sockets[sockets.length - 1];
    if (socket === undefined) throw new Error("no socket was opened");
    return socket;
  };
  return { watch, sockets, seen, last };
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

describe("Watch", () => {
  it("begins with a snapshot, and resumes after the last revision it had", () => {
    const { watch, sockets, seen, last } = world();
    watch.start();
    last().say({ revision: 7 });
    expect(seen).toMatchObject({ restarted: [7], states: ["current"] });
    last().say({ revision: 9 });
    last().end(1006);
    expect(seen.states).toEqual(["current", "behind"]);
    vi.advanceTimersByTime(500);
    expect(sockets).toHaveLength(2);
    expect(last().after).toBe(9);
    last().say({ revision: 12 }); // the server is there; what happened in between is still to come
    expect(seen.restarted).toEqual([7]);
    expect(seen.states).toEqual(["current", "behind", "current"]);
    watch.stop();
  });

  it("begins anew when changes since then are no longer kept", () => {
    const { watch, seen, last } = world();
    watch.start();
    last().say({ revision: 7 });
    last().end(1006);
    vi.advanceTimersByTime(500);
    last().say({ revision: 90 });
    last().end(4409);
    vi.advanceTimersByTime(1_000);
    expect(last().after).toBeNull();
    last().say({ revision: 91 });
    expect(seen.restarted).toEqual([7, 91]);
    watch.stop();
  });

  it("does not trust a silent stream", () => {
    const { watch, sockets, seen, last } = world();
    watch.start();
    last().say({ revision: 7 });
    const first = last();
    vi.advanceTimersByTime(SILENCE_MS + 2_500);
    expect(first.closed).toBe(true);
    expect(seen.states).toEqual(["current", "behind"]);
    expect(sockets.length).toBeGreaterThan(1);
    watch.stop();
  });

  it("connects again at once after the computer has slept", () => {
    const { watch, sockets, seen, last } = world();
    watch.start();
    last().say({ revision: 7 });
    vi.setSystemTime(Date.now() + 3_600_000);
    vi.advanceTimersByTime(1_010);
    expect(seen.states).toEqual(["current", "behind"]);
    expect(sockets).toHaveLength(2);
    watch.stop();
  });

  it("waits longer after each failure, within limits", () => {
    const { watch, sockets, last } = world();
    watch.start();
    for (let n = 0; n < 10; n++) {
      last().end(1006);
      vi.advanceTimersByTime(5_000);
    }
    expect(sockets).toHaveLength(11);
    last().end(1006);
    vi.advanceTimersByTime(1_100);
    expect(sockets).toHaveLength(11);
    watch.stop();
  });

  it("stops when the session has ended, and not before", () => {
    const { watch, sockets, seen, last } = world();
    watch.start();
    last().say({ revision: 7 });
    last().end(4401);
    vi.advanceTimersByTime(60_000);
    expect(seen).toMatchObject({ ended: 1, states: ["current", "ended"] });
    expect(sockets).toHaveLength(1);
    watch.start(); // somebody has logged in again
    expect(last().after).toBe(7);
    watch.stop();
  });
});
