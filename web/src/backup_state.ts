/** How old a VM's newest backup is, against what its backup policies promise. */
import type { Vm } from "./api";
import { duration } from "./format";
import { t } from "./i18n";

type Backups = Pick<Vm["backups"], "newest_at" | "late_at">;

/** Whether the promise is broken; null where no policy makes one. `now_ms`: milliseconds since 1970. */
export function isLate({ late_at }: Backups, now_ms: number): boolean | null {
  return late_at === null ? null : Date.parse(late_at) <= now_ms;
}

/** The age, and when the promise was or will be broken: "2 h 0 min old; older than promised in 22 h 0 min, if no other is made". */
export function backupState(backups: Backups, now_ms: number): string {
  const { newest_at, late_at } = backups;
  const age = newest_at === null ? [] : [t("{time} old", { time: duration(Math.max(0, now_ms - Date.parse(newest_at)) / 1000) })];
  if (late_at === null) return [...age, t("no policy promises an age")].join("; ");
  const time = duration(Math.abs(Date.parse(late_at) - now_ms) / 1000);
  return [...age, isLate(backups, now_ms) ? t("older than promised for {time}", { time }) : t("older than promised in {time}, if no other is made", { time })].join("; ");
}
