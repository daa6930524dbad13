import { describe, expect, it } from "vitest";
import { backupState, isLate } from "./backup_state";

const NOW = Date.parse("2026-03-01T12:00:00Z");

describe("the newest backup of a VM", () => {
  it("is in time until the moment that its policy promises", () => {
    const backups = { newest_at: "2026-03-01T10:00:00Z", late_at: "2026-03-02T10:00:00Z" };
    expect(backupState(backups, NOW)).toBe("2 h 0 min old; older than promised in 22 h 0 min, if no other is made");
    expect([isLate(backups, NOW), isLate(backups, Date.parse(backups.late_at))]).toEqual([false, true]);
  });

  it("is late afterwards, also where there is none", () => {
    expect(backupState({ newest_at: "2026-02-28T10:00:00Z", late_at: "2026-03-01T10:00:00Z" }, NOW)).toBe("1 d 2 h old; older than promised for 2 h 0 min");
    expect(backupState({ newest_at: null, late_at: "2026-03-01T11:00:00Z" }, NOW)).toBe("older than promised for 1 h 0 min");
  });

  it("breaks no promise where no policy makes one", () => {
    const backups = { newest_at: "2026-03-01T10:00:00Z", late_at: null };
    expect(backupState(backups, NOW)).toBe("2 h 0 min old; no policy promises an age");
    expect(isLate(backups, NOW)).toBeNull();
  });

  it("is not older than nothing by a clock that is behind", () => {
    expect(backupState({ newest_at: "2026-03-01T12:00:09Z", late_at: null }, NOW)).toBe("0.0 s old; no policy promises an age");
  });
});
