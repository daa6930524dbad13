import { describe, expect, it } from "vitest";
import { NAME_CHARACTERS_MAX, nameForDownload, parents, visible, whole, within } from "./pieces";

const base64 = (text: string): string => btoa(text);
const noise = (): void => undefined;

describe("names of files", () => {
  it("show what would be invisible or turn the text around", () => {
    expect(visible("a\u202Etxt.exe\u0000\u001b\n\u2066\u200b")).toBe("a\ufffdtxt.exe\ufffd\ufffd\ufffd\ufffd\ufffd");
    expect(visible("<b>ümläut שלום.txt")).toBe("<b>ümläut שלום.txt");
  });

  it.each([
    ["notes.txt", "notes.txt"],
    ["<img src=x onerror=\"a\">", "_img src=x onerror=_a__"],
    ["a\u202Etxt.exe", "a_txt.exe"],
    ["..", "file"],
    ["", "file"],
    [".bashrc", "_bashrc"],
    ["C:\\a/b", "C__a_b"],
    ["end. ", "end__"],
  ])("become names on the reader's computer: %s", (name, kept) => expect(nameForDownload(name)).toBe(kept));

  it("are not longer than file systems take", () => {
    expect(nameForDownload("x".repeat(4000)).length).toBe(NAME_CHARACTERS_MAX);
  });

  it("are put together to paths, and taken apart", () => {
    expect([within("/", "etc"), within("/etc", "<b>")]).toEqual(["/etc", "/etc/<b>"]);
    expect(parents("/etc/ssh").map(({ path }) => path)).toEqual(["/", "/etc", "/etc/ssh"]);
    expect(parents("/").map(({ name }) => name)).toEqual(["/"]);
  });
});

describe("a file in pieces", () => {
  const signal = new AbortController().signal;
  const of = (text: string, size: number) => (offset: number) =>
    Promise.resolve({ data: base64(text.slice(offset, offset + size)), end: offset + size >= text.length });

  it("is put together as it was, and its progress told", async () => {
    const told: number[] = [];
    const blob = await whole({ read: of("\u00ff\u0000abc", 2), bytesMax: 5, progress: (bytes) => told.push(bytes), signal });
    expect([...new Uint8Array(await blob.arrayBuffer())]).toEqual([255, 0, 97, 98, 99]);
    expect([told, blob.type]).toEqual([[2, 4, 5], "application/octet-stream"]);
  });

  it("may be empty", async () => {
    expect((await whole({ read: of("", 2), bytesMax: 5, progress: noise, signal })).size).toBe(0);
  });

  it("is not read beyond a limit, whatever its length was said to be", async () => {
    await expect(whole({ read: of("x".repeat(100), 10), bytesMax: 50, progress: noise, signal })).rejects.toThrow("longer than 50 bytes");
  });

  it("fails if it does not end", async () => {
    await expect(whole({ read: () => Promise.resolve({ data: "", end: false }), bytesMax: 50, progress: noise, signal })).rejects.toThrow("empty piece");
  });

  it("is given up between two pieces", async () => {
    const giveUp = new AbortController();
    const read = (offset: number): Promise<{ data: string; end: boolean }> => {
      if (offset > 0) giveUp.abort();
      return Promise.resolve({ data: base64("ab"), end: false });
    };
    await expect(whole({ read, bytesMax: 50, progress: noise, signal: giveUp.signal })).rejects.toThrow();
  });
});
