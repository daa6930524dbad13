/** In which order the server lists objects: as the address says, or as usual. */
import { useSearch } from "wouter";
import { setAddress } from "./address";
import type { Column } from "./columns";
import type { Sorting } from "./components/table";

/** What the address says under `name`, if one of the columns can be sorted by that. */
export function sortIn(search: URLSearchParams, name: string, usual: string, columns: readonly Pick<Column<never>, "sort">[]): string {
  const asked = search.get(name) ?? "";
  const field = asked.replace(/^-/, "");
  return field !== "" && columns.some(({ sort }) => sort === field) ? asked : usual;
}

/** Whether a change of an object may move it within a list in this order: its value is another one. */
export function movesBy(by: string): (old: object, now: object) => boolean {
  const field = by.replace(/^-/, "");
  return (old, now) => valueAt(old, field) !== valueAt(now, field);
}

function valueAt(object: unknown, path: string): unknown {
  return path.split(".").reduce((value, name) => (typeof value === "object" && value !== null ? (value as Record<string, unknown>)[name] : undefined), object);
}

/** The order of a list. Lists of one page have different names in its address: `sort` is the first one's. */
export function useSorting(name: string, usual: string, columns: readonly Pick<Column<never>, "sort">[]): Sorting {
  const by = sortIn(new URLSearchParams(useSearch()), name, usual, columns);
  return { by, change: (to) => setAddress({ [name]: to }) };
}
