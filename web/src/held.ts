/** Requests that are held back for some seconds, so that whoever made them can take them back. They are in this page only: one that is left sends nothing. */

export const HOLD_MS = 10_000;
/** Browsers delay the timers of pages in the background by up to a minute. What is later than that was meant for another time: the computer has slept. */
export const LATE_MS_MAX = 75_000;
export const HELD_MAX = 8;

export interface Request {
  /** What will be done, and to what. */
  title: string;
  /** To which objects, by name. */
  names: readonly string[];
  /** Tell the same request about the same object from others. */
  keys: readonly string[];
  send: () => void;
}

export interface Held extends Request {
  id: number;
  /** When it is sent, as Date.now() counts. */
  due_at: number;
}

/** Why a request was not sent. */
export type Dropped = "undone" | "late" | "ended";

export interface World {
  now: () => number;
  /** Call back after so many milliseconds; returns what prevents that. */
  later: (call: () => void, ms: number) => () => void;
  dropped: (held: Held, why: Dropped) => void;
}

export class HeldRequests {
  #held: readonly Held[] = [];
  #next = 0;
  readonly #world: World;
  readonly #prevent = new Map<number, () => void>();
  readonly #listeners = new Set<() => void>();

  constructor(world: World) {
    this.#world = world;
  }

  /** All that wait, the oldest first; another array after each change. */
  get all(): readonly Held[] {
    return this.#held;
  }

  subscribe(heard: () => void): () => void {
    this.#listeners.add(heard);
    return () => this.#listeners.delete(heard);
  }

  /** Send a request in HOLD_MS; false: too many wait already, and it is not sent at all. */
  hold(request: Request): boolean {
    if (this.#held.length >= HELD_MAX) return false;
    const held = { ...request, id: this.#next++, due_at: this.#world.now() + HOLD_MS };
    this.#prevent.set(held.id, this.#world.later(() => this.#isDue(held), HOLD_MS));
    this.#become([...this.#held, held]);
    return true;
  }

  undo(id: number): void {
    const held = this.#take(id);
    if (held !== undefined) this.#world.dropped(held, "undone");
  }

  undoNewest(): void {
    const newest = this.#held[this.#held.length - 1];
    if (newest !== undefined) this.undo(newest.id);
  }

  sendNow(id: number): void {
    this.#take(id)?.send();
  }

  /** Send nothing of what waits: the session has ended, or the page is left. */
  end(): void {
    for (const { id } of this.#held) {
      const held = this.#take(id);
      if (held !== undefined) this.#world.dropped(held, "ended");
    }
  }

  #isDue({ id, due_at }: Held): void {
    const held = this.#take(id);
    if (held === undefined) return;
    if (this.#world.now() - due_at > LATE_MS_MAX) this.#world.dropped(held, "late");
    else held.send();
  }

  #take(id: number): Held | undefined {
    const held = this.#held.find((one) => one.id === id);
    if (held === undefined) return undefined;
    this.#prevent.get(id)?.();
    this.#prevent.delete(id);
    this.#become(this.#held.filter((one) => one !== held));
    return held;
  }

  #become(now: readonly Held[]): void {
    this.#held = now;
    this.#listeners.forEach((heard) => heard());
  }
}
