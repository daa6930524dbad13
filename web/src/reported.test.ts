import { describe, expect, it } from "vitest";
import { A_MINUTE_MAX, AGAIN_MS, Reported, reportOf } from "./reported";

describe("errors of a page", () => {
  it("are reported once a minute each, and no more than a few of them", () => {
    let now = 0;
    const reported = new Reported(() => now);
    expect(reported.isNew("a")).toBe(true);
    expect(reported.isNew("a")).toBe(false);
    for (let number = 1; number < A_MINUTE_MAX; number++) expect(reported.isNew(`b${number}`)).toBe(true);
    expect(reported.isNew("c")).toBe(false);
    now = AGAIN_MS;
    expect(reported.isNew("a")).toBe(true);
  });

  it("keep within what the server takes, whatever was thrown", () => {
    const error = new TypeError("x".repeat(5000));
    error.stack = "y".repeat(50_000);
    const { message, stack, page } = reportOf(error, `/${"z".repeat(900)}`);
    expect([message.length, stack.length, page.length]).toEqual([1000, 8000, 300]);
    expect(message.startsWith("TypeError: xx")).toBe(true);
    expect(reportOf(undefined, "/ui/")).toEqual({ message: "undefined", stack: "", page: "/ui/" });
  });
});
