/** Snapshots as a tree. */
import type { Snapshot } from "./api";

export interface Branch {
  snapshot: Snapshot;
  children: Branch[];
}

/** Order snapshots by what they were taken after. What is after something that is gone begins a tree of its own. */
export function treeOf(snapshots: readonly Snapshot[]): Branch[] {
  const branches = new Map<string, Branch>(snapshots.map((snapshot) => [snapshot.id, { snapshot, children: [] }]));
  const roots: Branch[] = [];
  for (const branch of branches.values()) {
    const parent = branch.snapshot.parent === null ? undefined : branches.get(branch.snapshot.parent);
    (parent?.children ?? roots).push(branch);
  }
  const order = (among: Branch[]): void => {
    among.sort((one, other) => one.snapshot.created_at.localeCompare(other.snapshot.created_at));
    among.forEach(({ children }) => order(children));
  };
  order(roots);
  return roots;
}
