/** How migrations went on for as long as this page knows of them: their progress at each change. */
import { useSyncExternalStore } from "react";
import type { Migration, Schemas } from "../api";
import { store } from "../live";
import { withSample } from "./series";

export interface ProgressAt {
  at_s: number;
  progress: Schemas["Progress"];
}

const MIGRATIONS_MAX = 50;
const NONE: readonly ProgressAt[] = [];
const known = new Map<string, readonly ProgressAt[]>();
const listeners = new Set<() => void>();

store.onChanges((changes) => {
  let changed = false;
  for (const { kind, key, now } of changes) {
    if (kind !== "migration" || now === null || store.get("migration", key) === undefined) continue;
    const { progress, started_at } = now as Migration;
    if (started_at === null) continue;
    const samples = known.get(key) ?? NONE;
    const at_s = Date.parse(started_at) / 1000 + progress.elapsed_s;
    if (at_s <= (samples[samples.length - 1]?.at_s ?? 0)) continue;
    known.delete(key); // the latest are at the end
    known.set(key, withSample(samples, { at_s, progress }));
    const oldest = known.keys().next().value;
    if (known.size > MIGRATIONS_MAX && oldest !== undefined) known.delete(oldest);
    changed = true;
  }
  if (changed) listeners.forEach((heard) => heard());
});

function subscribe(heard: () => void): () => void {
  listeners.add(heard);
  return () => listeners.delete(heard);
}

export function useProgress(id: string): readonly ProgressAt[] {
  return useSyncExternalStore(subscribe, () => known.get(id) ?? NONE);
}
