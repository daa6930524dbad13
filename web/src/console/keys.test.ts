import { describe, expect, it } from "vitest";
import { CHORDS, keysymOf, MODIFIERS, together, TYPED_MAX, typing } from "./keys";

describe("keys for a guest", () => {
  it("are pressed in order and all released again", () => {
    const strokes = together(CHORDS.get("Ctrl-Alt-F2") ?? []);
    expect(strokes.map(({ code, down }) => `${code} ${down ? "down" : "up"}`)).toEqual([
      "ControlLeft down", "AltLeft down", "F2 down", "F2 up", "AltLeft up", "ControlLeft up",
    ]);
    for (const keys of CHORDS.values()) {
      const held = new Set<string | null>();
      for (const { code, down } of together(keys)) down ? held.add(code) : held.delete(code);
      expect(held.size).toBe(0);
    }
    expect(MODIFIERS.map(([name]) => name)).toEqual(["Ctrl", "Alt", "Shift", "Super"]);
  });

  it("type a text with Shift where its characters need it, and line by line", () => {
    const typed = typing("aB!\r\n");
    expect(typed.map((strokes) => strokes.filter(({ down }) => down).map(({ keysym }) => keysym))).toEqual([[0x61], [0xffe1, 0x42], [0xffe1, 0x21], [0xff0d]]);
  });

  it("are told by keysyms, beyond Latin 1 as Unicode", () => {
    expect([keysymOf("ü"), keysymOf("€"), keysymOf("😀"), keysymOf("\t")]).toEqual([0xfc, 0x0100_20ac, 0x0101_f600, 0xff09]);
  });

  it("type no more than a limit", () => expect(typing("x".repeat(TYPED_MAX + 1)).length).toBe(TYPED_MAX));
});
