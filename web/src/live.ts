/** Joins the stream, the store and the lists: what pages show follows what happens, without polling. */
import { QueryCache, QueryClient, type QueryKey } from "@tanstack/react-query";
import { useCallback, useSyncExternalStore } from "react";
import { ApiError, whenSessionEnds } from "./api";
import { sessionEnded } from "./session";
import { type ListMeta, REFETCH_PARTIAL_MS, refetchDelay } from "./refetch";
import { KINDS, type Kind, type Kinds, ObjectStore } from "./store";
import { Watch, type WatchState } from "./watch";

export const store = new ObjectStore();
const TRIES_MAX = 4;
/** What could not be had for now is asked for again so much later, for as long as somebody looks at it. */
const LATER_MS = 10_000;

/** The server is busy or away, or nothing came at all: it will not stay like that. */
function passes(error: unknown): boolean {
  return !(error instanceof ApiError) || error.status === 429 || error.status >= 500;
}

export const queries = new QueryClient({
  queryCache: new QueryCache({
    onError: (error, query) => {
      if (passes(error) && query.queryKey[0] === "list") refetchSoon(query.queryKey, LATER_MS);
    },
  }),
  defaultOptions: {
    queries: {
      staleTime: Infinity, // the stream says what has changed
      refetchOnWindowFocus: false,
      refetchOnReconnect: false,
      retry: (failures, error) => failures < TRIES_MAX && passes(error),
      retryDelay: (failures) => Math.min(4000, 250 * 2 ** failures),
    },
    mutations: { retry: false },
  },
});

const due = new Map<string, ReturnType<typeof setTimeout>>();

function refetchSoon(key: QueryKey, delay: number): void {
  const name = JSON.stringify(key);
  if (due.has(name)) return;
  due.set(
    name,
    setTimeout(() => {
      due.delete(name);
      void queries.invalidateQueries({ queryKey: key, exact: true });
    }, delay),
  );
}

store.onChanges((changes) => {
  for (const query of queries.getQueryCache().findAll({ queryKey: ["list"] })) {
    const meta = query.meta as ListMeta | undefined;
    if (meta === undefined) continue;
    const pages = (query.state.data as { pages?: { next: string | null }[] } | undefined)?.pages;
    const complete = pages === undefined || pages[pages.length - 1]?.next == null;
    const delays = changes.map((change) => refetchDelay(change, meta, complete)).filter((delay) => delay !== null);
    if (delays.length > 0) refetchSoon(query.queryKey, Math.min(...delays));
  }
  // Images have no changes of their own in the stream: nodes say which they have.
  if (changes.some((change) => change.kind === "node")) refetchSoon(["images"], REFETCH_PARTIAL_MS);
});

let state: WatchState = "connecting";
let since = Date.now();
const stateListeners = new Set<() => void>();

function open(after: number | null): WebSocket {
  const resume = after === null ? "" : `&after=${after}`;
  return new WebSocket(`wss://${location.host}/api/v1/watch?kinds=${KINDS.join(",")}${resume}`);
}

export const watch = new Watch(open, {
  after: () => (store.revision > 0 ? store.revision : null),
  message: (message) => {
    const before = store.revision;
    store.receive(message);
    if (store.revision !== before) stateListeners.forEach((heard) => heard());
  },
  restarted: (revision) => {
    store.restart(revision);
    void queries.invalidateQueries();
  },
  interrupted: () => store.interrupted(),
  sessionEnded,
  changed: (now) => {
    state = now;
    since = Date.now();
    stateListeners.forEach((heard) => heard());
  },
});

whenSessionEnds(() => {
  watch.stop();
  sessionEnded();
});

const hurry = (): void => watch.hurry();
window.addEventListener("online", hurry);
window.addEventListener("focus", hurry);
window.addEventListener("pageshow", hurry);
document.addEventListener("visibilitychange", () => {
  if (document.visibilityState === "visible") hurry();
});

function subscribeState(heard: () => void): () => void {
  stateListeners.add(heard);
  return () => stateListeners.delete(heard);
}

/** Whether the stream can be relied on; unlike `useWatchState`, it changes with that only. */
export function useConnection(): WatchState {
  return useSyncExternalStore(subscribeState, () => state);
}

export function useWatchState(): { state: WatchState; revision: number; since: number } {
  const current = useSyncExternalStore(subscribeState, () => state);
  const revision = useSyncExternalStore(subscribeState, () => store.revision);
  return { state: current, revision, since };
}

/** The object as it is now; undefined: the store does not have it. */
export function useObject<K extends Kind>(kind: K, key: string): Kinds[K] | undefined {
  const subscribe = useCallback((heard: () => void) => store.subscribe(kind, key, heard), [kind, key]);
  return useSyncExternalStore(subscribe, () => store.get(kind, key));
}

const snapshots = new Map<Kind, { version: number; objects: unknown[] }>();
const versions = new Map<Kind, number>();
store.onChanges((changes) => {
  for (const { kind } of changes) versions.set(kind, (versions.get(kind) ?? 0) + 1);
});

function snapshot<K extends Kind>(kind: K): Kinds[K][] {
  const version = versions.get(kind) ?? 0;
  const kept = snapshots.get(kind);
  if (kept?.version === version) return kept.objects as Kinds[K][];
  const objects = store.all(kind);
  snapshots.set(kind, { version, objects });
  return objects;
}

/** All objects of a kind that the store has: for kinds of which there are few. */
export function useAll<K extends Kind>(kind: K): Kinds[K][] {
  return useSyncExternalStore(
    (heard) => store.onChanges((changes) => changes.some((change) => change.kind === kind) && heard()),
    () => snapshot(kind),
  );
}
