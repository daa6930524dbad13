/**
 * The one normalised store: objects that pages have asked for, kept current by the watch stream.
 *
 * Whatever comes later with an older revision is ignored, so answers and changes may arrive in any order.
 */
import type { Backup, BackupPolicy, BackupRepository, Drain, DrillRun, Event, Export, Flavor, FloatingAddress, Forward, Import, Link, Migration, Network, Node, Plan, Project, Replica, SecurityGroup, Snapshot, Template, UnreconciledVm, Vm, Volume } from "./api";

export interface Kinds {
  vm: Vm;
  node: Node;
  migration: Migration;
  network: Network;
  volume: Volume;
  event: Event;
  drain: Drain;
  drill: DrillRun;
  export: Export;
  import: Import;
  link: Link;
  project: Project;
  snapshot: Snapshot;
  "floating-address": FloatingAddress;
  forward: Forward;
  "security-group": SecurityGroup;
  "unreconciled-vm": UnreconciledVm;
  flavor: Flavor;
  template: Template;
  backup: Backup;
  "backup-policy": BackupPolicy;
  "backup-repository": BackupRepository;
  plan: Plan;
  replica: Replica;
}
export type Kind = keyof Kinds;

interface Keyed {
  id?: string | number;
  name?: string;
  address?: string | null;
}

/** By what the stream names an object of each kind. */
const KEYS: Record<Kind, keyof Keyed> = {
  vm: "id",
  node: "name",
  migration: "id",
  network: "name",
  volume: "id",
  event: "id",
  drain: "id",
  drill: "id",
  export: "id",
  import: "id",
  link: "id",
  project: "name",
  snapshot: "id",
  "floating-address": "address",
  forward: "id",
  "security-group": "name",
  "unreconciled-vm": "id",
  flavor: "name",
  template: "name",
  backup: "id",
  "backup-policy": "id",
  "backup-repository": "id",
  plan: "id",
  replica: "id",
};
export const KINDS = Object.keys(KEYS) as readonly Kind[];

export interface Change<K extends Kind = Kind> {
  kind: K;
  key: string;
  /** What the store had; undefined: it did not have the object. */
  old: Kinds[K] | undefined;
  /** What it is now; null: it is gone. */
  now: Kinds[K] | null;
}

interface Message {
  kind?: string | null;
  object?: unknown;
  deleted?: string | null;
  revision?: number | null;
}

interface Recent {
  revision: number;
  object: Kinds[Kind] | null;
  at: number;
}

/** How long changes are remembered at most while an answer is under way that may have been made before them. */
export const REMEMBERED_MS = 120_000;
/** How many events are kept: there is no end to them. */
export const EVENTS_MAX = 3_000;

export function keyOf<K extends Kind>(kind: K, object: Kinds[K]): string {
  return String((object as Keyed)[KEYS[kind]]);
}

export class ObjectStore {
  /** Up to which revision the store is complete. */
  revision = 0;
  private readonly objects: { [K in Kind]: Map<string, Kinds[K]> };
  private readonly recent = new Map<string, Recent>();
  private answersUnderWay = 0;
  private pending: Message[] = [];
  private readonly ofObject = new Map<string, Set<() => void>>();
  private readonly ofChanges = new Set<(changes: Change[]) => void>();
  private readonly clock: () => number;

  constructor(clock: () => number = () => Date.now()) {
    this.clock = clock;
    this.objects = Object.fromEntries(KINDS.map((kind) => [kind, new Map()])) as typeof this.objects;
  }

  get<K extends Kind>(kind: K, key: string): Kinds[K] | undefined {
    return this.objects[kind].get(key);
  }

  all<K extends Kind>(kind: K): Kinds[K][] {
    return [...this.objects[kind].values()];
  }

  /** Call back when an object changes; return what ends that. */
  subscribe(kind: Kind, key: string, heard: () => void): () => void {
    const name = `${kind}/${key}`;
    const listeners = this.ofObject.get(name) ?? new Set();
    this.ofObject.set(name, listeners.add(heard));
    return () => {
      listeners.delete(heard);
      if (listeners.size === 0) this.ofObject.delete(name);
    };
  }

  /** Call back with all changes of each whole revision. */
  onChanges(heard: (changes: Change[]) => void): () => void {
    this.ofChanges.add(heard);
    return () => this.ofChanges.delete(heard);
  }

  /** Ask for something and `admit` it: changes that come meanwhile are remembered, for the answer may be older than they are. */
  async asking<T>(ask: () => Promise<T>): Promise<T> {
    this.answersUnderWay += 1;
    try {
      return await ask();
    } finally {
      this.answersUnderWay -= 1;
      if (this.answersUnderWay === 0) this.recent.clear();
    }
  }

  /** Take in an answer that is as of `revision`; return the keys of the objects in it that still exist. */
  admit<K extends Kind>(kind: K, items: readonly Kinds[K][], revision: number): string[] {
    const keys: string[] = [];
    const changes: Change[] = [];
    for (const item of items) {
      const key = keyOf(kind, item);
      const later = this.recent.get(`${kind}/${key}`);
      if (later !== undefined && later.revision > revision) {
        if (later.object === null) continue;
        this.put(kind, key, later.object as Kinds[K], changes);
      } else {
        this.put(kind, key, item, changes);
      }
      keys.push(key);
    }
    this.tell(changes);
    return keys;
  }

  /** Take in a message of the stream. Changes count when their revision is complete. */
  receive(message: Message): void {
    if (message.kind != null) this.pending.push(message);
    if (message.revision == null) return;
    const changes: Change[] = [];
    for (const one of this.pending) this.apply(one, message.revision, changes);
    this.pending = [];
    this.revision = Math.max(this.revision, message.revision);
    this.forget();
    this.tell(changes);
  }

  /** The stream broke off: what had come of an incomplete revision will come again. */
  interrupted(): void {
    this.pending = [];
  }

  /** Begin anew at a revision: changes were missed. Objects stay until answers replace them. */
  restart(revision: number): void {
    this.pending = [];
    this.recent.clear();
    this.revision = revision;
  }

  /** An object that was asked for is not there. */
  drop<K extends Kind>(kind: K, key: string): void {
    const changes: Change[] = [];
    this.remove(kind, key, changes);
    this.tell(changes);
  }

  private apply(message: Message, revision: number, changes: Change[]): void {
    const kind = message.kind as Kind;
    if (!(kind in this.objects)) return;
    if (message.deleted != null) {
      this.remember(kind, message.deleted, revision, null);
      this.remove(kind, message.deleted, changes);
      return;
    }
    const object = message.object as Kinds[Kind];
    const key = keyOf(kind, object);
    this.remember(kind, key, revision, object);
    if (this.objects[kind].has(key)) this.put(kind, key, object, changes);
    else changes.push({ kind, key, old: undefined, now: object });
  }

  private put<K extends Kind>(kind: K, key: string, object: Kinds[K], changes: Change[]): void {
    const old = this.objects[kind].get(key);
    if (old !== undefined && old.revision >= object.revision) return;
    const objects = this.objects[kind];
    objects.set(key, object);
    changes.push({ kind, key, old, now: object });
    if (kind === "event" && objects.size > EVENTS_MAX) {
      const oldest = objects.keys().next().value;
      if (oldest !== undefined) objects.delete(oldest);
    }
  }

  private remove<K extends Kind>(kind: K, key: string, changes: Change[]): void {
    const old = this.objects[kind].get(key);
    this.objects[kind].delete(key);
    changes.push({ kind, key, old, now: null });
  }

  private remember(kind: Kind, key: string, revision: number, object: Kinds[Kind] | null): void {
    if (this.answersUnderWay === 0) return;
    const name = `${kind}/${key}`;
    this.recent.delete(name); // the latest are at the end
    this.recent.set(name, { revision, object, at: this.clock() });
  }

  private forget(): void {
    const until = this.clock() - REMEMBERED_MS;
    for (const [name, { at }] of this.recent) {
      if (at > until) break;
      this.recent.delete(name);
    }
  }

  private tell(changes: Change[]): void {
    if (changes.length === 0) return;
    for (const { kind, key } of changes) this.ofObject.get(`${kind}/${key}`)?.forEach((heard) => heard());
    this.ofChanges.forEach((heard) => heard(changes));
  }
}
