/** Keys that a browser or its computer keeps for itself, and texts as keys: X11 keysyms, and the names of keys as browsers have them. */

export interface Key {
  /** X11's number of what the key means. */
  keysym: number;
  /** The key's place on the keyboard, which guests map themselves; null: only its meaning is sent. */
  code: string | null;
}

export interface Stroke extends Key {
  down: boolean;
}

const CONTROL: Key = { keysym: 0xffe3, code: "ControlLeft" };
const ALT: Key = { keysym: 0xffe9, code: "AltLeft" };
const SHIFT: Key = { keysym: 0xffe1, code: "ShiftLeft" };
const SUPER: Key = { keysym: 0xffeb, code: "MetaLeft" };
const F1_KEYSYM = 0xffbe;
const RETURN_KEYSYM = 0xff0d;
const TAB_KEYSYM = 0xff09;
const UNICODE_KEYSYMS = 0x0100_0000;
const FUNCTION_KEYS = 12;
export const TYPED_MAX = 4_000;

/** Keys that can be held down while others are typed. Their names are the same in all languages. */
export const MODIFIERS: readonly (readonly [string, Key])[] = [
  ["Ctrl", CONTROL],
  ["Alt", ALT],
  ["Shift", SHIFT],
  ["Super", SUPER],
];

const functionKey = (number: number): Key => ({ keysym: F1_KEYSYM + number - 1, code: `F${number}` });

/** Keys that are pressed together. */
export const CHORDS: ReadonlyMap<string, readonly Key[]> = new Map([
  ["Ctrl-Alt-Del", [CONTROL, ALT, { keysym: 0xffff, code: "Delete" }]],
  ["Ctrl-Alt-Backspace", [CONTROL, ALT, { keysym: 0xff08, code: "Backspace" }]],
  ["Alt-Tab", [ALT, { keysym: TAB_KEYSYM, code: "Tab" }]],
  ["Alt-F4", [ALT, functionKey(4)]],
  ["Ctrl-W", [CONTROL, { keysym: 0x77, code: "KeyW" }]],
  ["Esc", [{ keysym: 0xff1b, code: "Escape" }]],
  ["Tab", [{ keysym: TAB_KEYSYM, code: "Tab" }]],
  ["Super", [SUPER]],
  ["Print", [{ keysym: 0xff61, code: "PrintScreen" }]],
  ...Array.from({ length: FUNCTION_KEYS }, (_, index): [string, Key[]] => [`Ctrl-Alt-F${index + 1}`, [CONTROL, ALT, functionKey(index + 1)]]),
  ...Array.from({ length: FUNCTION_KEYS }, (_, index): [string, Key[]] => [`F${index + 1}`, [functionKey(index + 1)]]),
]);

/** Press them in order, and release them in the opposite one. */
export function together(keys: readonly Key[]): Stroke[] {
  return [...keys.map((key) => ({ ...key, down: true })), ...keys.toReversed().map((key) => ({ ...key, down: false }))];
}

/** The keysym of a character. */
export function keysymOf(character: string): number {
  if (character === "\n") return RETURN_KEYSYM;
  if (character === "\t") return TAB_KEYSYM;
  const point = character.codePointAt(0) ?? 0;
  return point < 0x100 ? point : UNICODE_KEYSYMS + point;
}

/** Characters for which a keyboard of the United States, as guests have it, needs Shift: what the display sends has keys, and no characters. */
const SHIFTED = /[A-Z~!@#$%^&*()_+{}|:"<>?]/;

/** A text, at most TYPED_MAX characters of it, as the keys that type it. */
export function typing(text: string): Stroke[][] {
  const characters = [...text.replaceAll("\r\n", "\n")].slice(0, TYPED_MAX);
  return characters.map((character) => {
    const key: Key = { keysym: keysymOf(character), code: null };
    return together(SHIFTED.test(character) ? [SHIFT, key] : [key]);
  });
}
