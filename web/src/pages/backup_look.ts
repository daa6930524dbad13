/** Who may look into a backup. */
import type { Backup, Me } from "../api";
import { m } from "../i18n";
import { refusalFor } from "../session";

/** Why the reader can't look into a backup; null: they can. */
export function lookRefusal(me: Me, backup: Backup): string | null {
  return refusalFor(me, "write", backup.project) ?? (backup.phase === "kept" || backup.phase === "damaged" ? null : m("Only a backup that is kept has files."));
}
