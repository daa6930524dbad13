/** Which columns of a list are shown, and in which order: as its address says, as the reader has chosen before, or as usual. */
import type { ReactNode } from "react";

export interface Column<T> {
  title: string;
  /** A width, as CSS grid writes it. */
  width: string;
  /** The field that the server sorts by. */
  sort?: string;
  cell: (object: T) => ReactNode;
  /** The same as a text, for files; not needed where a cell is one. */
  text?: (object: T) => string;
  /** Shown only to readers who choose it. */
  extra?: boolean;
}

type Titled = Pick<Column<never>, "title" | "extra">;

/** The name of a column in addresses: its English title. */
export function idOf({ title }: Titled): string {
  return title.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-").replaceAll(/^-|-$/g, "");
}

/** Whether it has buttons instead of values; such a column is always shown, as the last one. */
export function isButtons({ title }: Titled): boolean {
  return title === "";
}

export function usual(columns: readonly Titled[]): string[] {
  return columns.filter((column) => !isButtons(column) && column.extra !== true).map(idOf);
}

/** The first of these lists that names a column; what it names twice, or nobody knows, is left out. */
export function chosen(columns: readonly Titled[], ...asked: readonly (string | null)[]): string[] {
  const known = new Set(columns.filter((column) => !isButtons(column)).map(idOf));
  for (const text of asked) {
    const ids = [...new Set((text ?? "").split(","))].filter((id) => known.has(id));
    if (ids.length > 0) return ids;
  }
  return usual(columns);
}

/** As addresses and the browser's storage have it; empty: as usual. */
export function written(columns: readonly Titled[], ids: readonly string[]): string {
  const text = ids.join(",");
  return text === usual(columns).join(",") ? "" : text;
}

export function shown<C extends Titled>(columns: readonly C[], ids: readonly string[]): C[] {
  const byId = new Map(columns.map((column) => [idOf(column), column]));
  return [...ids.map((id) => byId.get(id)).filter((column) => column !== undefined), ...columns.filter(isButtons)];
}

/** The width below which a row of these columns scrolls sideways, in rem: their least widths, and the gaps between them. */
export function leastWidth(widths: readonly string[]): number {
  const least = widths.map((width) => Number(/([\d.]+)rem/.exec(width)?.[1] ?? 0));
  return least.reduce((sum, rem) => sum + rem + 0.5, 1);
}

/** Show a column behind the others, or show it no more; the last one stays. */
export function toggled(ids: readonly string[], id: string): string[] {
  if (!ids.includes(id)) return [...ids, id];
  return ids.length === 1 ? [...ids] : ids.filter((one) => one !== id);
}

/** Move a column by one place, as far as there is one. */
export function moved(ids: readonly string[], id: string, by: 1 | -1): string[] {
  const from = ids.indexOf(id);
  const other = ids[from + by];
  if (from < 0 || other === undefined) return [...ids];
  return ids.map((one, index) => (index === from ? other : index === from + by ? id : one));
}
