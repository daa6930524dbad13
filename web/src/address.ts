/** The part of a page's address behind the question mark: filters, order and columns, so that a page can be shared as it is. */
import { navigate } from "wouter/use-browser-location";

/** Change parts of the address as it is now, so that lists of one page do not undo each other's; an empty value takes a part out. */
export function setAddress(values: Readonly<Record<string, string>>): void {
  const search = changed(new URLSearchParams(location.search), values).toString();
  navigate(location.pathname + (search === "" ? "" : `?${search}`), { replace: true });
}

export function changed(search: URLSearchParams, values: Readonly<Record<string, string>>): URLSearchParams {
  const next = new URLSearchParams(search);
  for (const [name, value] of Object.entries(values)) {
    if (value === "") next.delete(name);
    else next.set(name, value);
  }
  return next;
}

/** What of these the address says, without those that it leaves out. */
export function filtersIn<N extends string>(search: URLSearchParams, names: readonly N[]): Partial<Record<N, string>> {
  const said = names.map((name) => [name, search.get(name)?.trim() ?? ""] as const).filter(([, value]) => value !== "");
  return Object.fromEntries(said) as Partial<Record<N, string>>;
}

/** Whether an object has all tags of a filter, as the server understands it. */
export function hasTags(tags: readonly string[], wanted: string | undefined): boolean {
  return (wanted ?? "").split(",").every((tag) => tag.trim() === "" || tags.includes(tag.trim()));
}
