/** When a list has to be asked for again. */
import type { Change, Kind, Kinds } from "./store";

/** How a list's contents follow from its objects. */
export interface ListMeta extends Record<string, unknown> {
  kind: Kind;
  /** Whether an object is one of the list's, as far as the page can say. */
  belongs: (object: Kinds[Kind]) => boolean;
  /** Whether a change of an object may move it within the list, or out of it. */
  moves: (old: Kinds[Kind], now: Kinds[Kind]) => boolean;
}

export const REFETCH_MS = 400;
/** Of a list that was loaded in part: an object that is not known may have been in the other part all the time. */
export const REFETCH_PARTIAL_MS = 3_000;

/** Say how soon to look again because a change may add to, take from or reorder a list; null: it does none of that. */
export function refetchDelay({ kind, old, now }: Change, meta: ListMeta, complete: boolean): number | null {
  if (kind !== meta.kind) return null;
  if (now === null) return old === undefined ? null : REFETCH_MS;
  if (old === undefined) return !meta.belongs(now) ? null : complete ? REFETCH_MS : REFETCH_PARTIAL_MS;
  return meta.moves(old, now) ? REFETCH_MS : null;
}
