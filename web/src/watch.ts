/** The watch stream: one WebSocket that is opened again whenever it ends, is silent for too long, or the computer has slept. */

export type WatchState = "connecting" | "current" | "behind" | "ended";

/** The server repeats its revision every 5 s. */
export const SILENCE_MS = 12_000;
const LOOK_MS = 1_000;
/** The clock jumped by more than this between two looks: the computer slept, or the browser held the page up. */
const SLEPT_MS = 6_000;
const RETRY_MS = [250, 500, 1_000, 1_500] as const;
const CLOSE_ENDED = 4401;
const CLOSE_REFUSED = 4409;
const CLOSE_MISSED = 4000;

export interface Socket {
  onmessage: ((event: MessageEvent<unknown>) => void) | null;
  onclose: ((event: CloseEvent) => void) | null;
  close(code?: number): void;
}

export interface Listener {
  /** The revision that the page has all changes up to; null: none yet. */
  after(): number | null;
  message(message: Record<string, unknown>): void;
  /** The stream begins at this revision, and what the page has may be older. */
  restarted(revision: number): void;
  interrupted(): void;
  sessionEnded(): void;
  changed(state: WatchState): void;
}

export class Watch {
  state: WatchState = "connecting";
  private socket: Socket | null = null;
  private tries = 0;
  private heardAt = 0;
  private lookedAt = 0;
  private resumes = false;
  private began = false;
  private mustRestart = false;
  private retry: ReturnType<typeof setTimeout> | undefined;
  private looking: ReturnType<typeof setInterval> | undefined;
  private readonly open: (after: number | null) => Socket;
  private readonly listener: Listener;
  private readonly clock: () => number;

  constructor(open: (after: number | null) => Socket, listener: Listener, clock: () => number = () => Date.now()) {
    this.open = open;
    this.listener = listener;
    this.clock = clock;
  }

  start(): void {
    this.stop();
    this.lookedAt = this.clock();
    this.looking = setInterval(() => this.look(), LOOK_MS);
    this.connect();
  }

  stop(): void {
    clearInterval(this.looking);
    clearTimeout(this.retry);
    const socket = this.socket;
    this.socket = null;
    socket?.close();
  }

  /** Something suggests that the stream is dead, or that it can be had again now. */
  hurry(): void {
    if (this.looking === undefined || this.state === "ended") return;
    if (this.state !== "current" || this.clock() - this.heardAt > 0.6 * SILENCE_MS) this.again(0);
  }

  private connect(): void {
    const after = this.mustRestart ? null : this.listener.after();
    this.resumes = after !== null;
    this.began = false;
    this.heardAt = this.clock();
    const socket = this.open(after);
    this.socket = socket;
    socket.onmessage = (event) => {
      if (this.socket === socket) this.receive(event.data);
    };
    socket.onclose = (event) => {
      if (this.socket === socket) this.closed(event.code);
    };
  }

  private receive(data: unknown): void {
    this.heardAt = this.clock();
    const message = JSON.parse(String(data)) as Record<string, unknown>;
    if (!this.began) {
      // The first message says where the server is. Who resumes has not everything up to there yet.
      this.began = true;
      this.tries = 0;
      this.mustRestart = false;
      if (!this.resumes) this.listener.restarted(Number(message["revision"]));
      this.become("current");
      return;
    }
    this.listener.message(message);
  }

  private closed(code: number): void {
    this.socket = null;
    this.listener.interrupted();
    if (code === CLOSE_ENDED) {
      this.stop();
      this.become("ended");
      this.listener.sessionEnded();
      return;
    }
    if (code === CLOSE_REFUSED) this.mustRestart = true; // changes since then are no longer kept
    this.again(RETRY_MS[Math.min(this.tries++, RETRY_MS.length - 1)] ?? 0);
  }

  private again(delay: number): void {
    const socket = this.socket;
    this.socket = null;
    if (socket !== null) {
      this.listener.interrupted();
      socket.close(CLOSE_MISSED);
    }
    this.become("behind");
    clearTimeout(this.retry);
    this.retry = setTimeout(() => this.connect(), delay * (0.8 + 0.4 * Math.random()));
  }

  private look(): void {
    const now = this.clock();
    const slept = now - this.lookedAt > SLEPT_MS;
    this.lookedAt = now;
    if (this.socket !== null && (slept || now - this.heardAt > SILENCE_MS)) this.again(0);
  }

  private become(state: WatchState): void {
    if (this.state === state) return;
    this.state = state;
    this.listener.changed(state);
  }
}
