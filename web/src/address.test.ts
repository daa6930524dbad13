import { describe, expect, it } from "vitest";
import { changed, filtersIn, hasTags } from "./address";

describe("the address", () => {
  it("has the filters that were set, and keeps everything else", () => {
    const search = new URLSearchParams("sort=-name&vm-columns=name&tag=a");
    expect(changed(search, { tag: "", node: "host a&b" }).toString()).toBe("sort=-name&vm-columns=name&node=host+a%26b");
    expect(search.get("tag")).toBe("a");
  });

  it("says what it filters by, and nothing of what it leaves empty", () => {
    expect(filtersIn(new URLSearchParams("tag=%20a%20&node=&other=x"), ["tag", "node", "image"])).toEqual({ tag: "a" });
  });

  it("asks for objects with all of its tags", () => {
    expect([hasTags(["a", "b"], "a, b"), hasTags(["a"], "a,b"), hasTags([], undefined), hasTags([], "")]).toEqual([true, false, true, true]);
  });
});
