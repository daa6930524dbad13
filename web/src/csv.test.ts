import { describe, expect, it } from "vitest";
import { csv } from "./csv";

describe("csv", () => {
  it("quotes what would end a cell, and nothing else", () => {
    expect(csv([["name", "why"], ["a", 'says "no", twice\nand more']])).toBe('name,why\r\na,"says ""no"", twice\nand more"\r\n');
  });

  it("disarms what a spreadsheet would run, but not figures", () => {
    expect(csv([["=HYPERLINK(1)", "+1+1", "@x", "-1.5", "\tx"]])).toBe("'=HYPERLINK(1),'+1+1,'@x,-1.5,'\tx\r\n");
  });
});
