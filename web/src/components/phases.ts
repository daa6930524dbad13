/** Which phases of a migration are its last. */
import type { MigrationPhase } from "../api";

const UNDER_WAY: Record<MigrationPhase, boolean> = {
  aborted: false,
  completed: false,
  failed: false,
  pending: true,
  preparing: true,
  transferring: true,
};

export function isUnderWay(phase: MigrationPhase): boolean {
  return UNDER_WAY[phase];
}
