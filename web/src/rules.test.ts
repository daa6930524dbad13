import { describe, expect, it } from "vitest";
import { ruleOf, ruleText } from "./rules";

describe("rules", () => {
  it.each(["in:tcp:443", "in:tcp:8000-8099:10.0.0.0/8", "in:any::@web", "out:udp:53:2001:db8::/32", "in:icmp"])("%s is read and written alike", (text) => {
    expect(ruleText(ruleOf(text))).toBe(text);
  });
});
