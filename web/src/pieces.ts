/** Files that come in pieces, as guests and backups have them: whatever they are called, and however long they say they are. */
import type { Schemas } from "./api";

export const NAME_CHARACTERS_MAX = 150;

/** Characters that show nothing, or change the order of those around them. */
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;
/** Characters that some systems do not allow in names of files. */
const NOT_IN_NAMES = /[\\/:*?"<>|]/g;

/** A name as it can be shown: what would show nothing, or turn the text around, is a mark. */
export function visible(name: string): string {
  return name.replace(INVISIBLE, "\ufffd");
}

/** A name under which the reader's computer can keep a file. */
export function nameForDownload(name: string): string {
  const safe = name.replace(INVISIBLE, "_").replace(NOT_IN_NAMES, "_").slice(0, NAME_CHARACTERS_MAX);
  return /^[.\s]*$/.test(safe) ? "file" : safe.replace(/^\.+|[.\s]+$/g, (dots) => "_".repeat(dots.length));
}

/** Where an entry of a directory is. */
export function within(directory: string, name: string): string {
  return directory.endsWith("/") ? `${directory}${name}` : `${directory}/${name}`;
}

/** Every directory on the way to a path, the root first. */
export function parents(path: string): { name: string; path: string }[] {
  const names = path.split("/").filter((name) => name !== "");
  return [{ name: "/", path: "/" }, ...names.map((name, index) => ({ name, path: `/${names.slice(0, index + 1).join("/")}` }))];
}

function bytesOf(base64: string): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
}

export interface Reading {
  /** Return what is at an offset. */
  read: (offset: number) => Promise<Schemas["FilePiece"]>;
  bytesMax: number;
  progress: (bytes: number) => void;
  signal: AbortSignal;
}

/** Return a whole file. Throws what `read` throws, and errors if it is longer than `bytesMax`, never ends, or is given up. */
export async function whole({ read, bytesMax, progress, signal }: Reading): Promise<Blob> {
  const pieces: Blob[] = []; // browsers may keep blobs on their disk
  for (let offset = 0; ; ) {
    signal.throwIfAborted();
    const piece = await read(offset);
    signal.throwIfAborted();
    const bytes = bytesOf(piece.data);
    offset += bytes.length;
    if (offset > bytesMax) throw new Error(`the file is longer than ${bytesMax} bytes`);
    pieces.push(new Blob([bytes]));
    progress(offset);
    if (piece.end) return new Blob(pieces, { type: "application/octet-stream" }); // no browser shows this as a page
    if (bytes.length === 0) throw new Error("the server answered with an empty piece");
  }
}
