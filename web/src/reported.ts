/** Which errors of a page are worth reporting: not the same one again, and not too many. */

export const AGAIN_MS = 60_000;
export const A_MINUTE_MAX = 5;
const LENGTH_MAX = { message: 1000, stack: 8000, page: 300 } as const;

export interface Report {
  message: string;
  stack: string;
  page: string;
}

/** What is said of an error, within the server's limits. What is searched for on a page is nobody's business. */
export function reportOf(error: unknown, page: string): Report {
  const [message, stack] = error instanceof Error ? [`${error.name}: ${error.message}`, error.stack ?? ""] : [String(error), ""];
  return { message: message.slice(0, LENGTH_MAX.message), stack: stack.slice(0, LENGTH_MAX.stack), page: page.slice(0, LENGTH_MAX.page) };
}

export class Reported {
  private readonly at = new Map<string, number>();
  private readonly clock: () => number;

  constructor(clock: () => number = () => Date.now()) {
    this.clock = clock;
  }

  /** Say whether a report is to be sent now; it then counts as sent. */
  isNew(message: string): boolean {
    const now = this.clock();
    for (const [known, at] of this.at) if (now - at >= AGAIN_MS) this.at.delete(known);
    if (this.at.has(message) || this.at.size >= A_MINUTE_MAX) return false;
    this.at.set(message, now);
    return true;
  }
}
