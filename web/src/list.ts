/** Lists: the server filters, sorts and pages; the store keeps their objects current. */
import { keepPreviousData, useInfiniteQuery, type UseInfiniteQueryResult } from "@tanstack/react-query";
import { useEffect, useMemo } from "react";
import { t } from "./i18n";
import { store, useConnection } from "./live";
import type { ListMeta } from "./refetch";
import type { Kind, Kinds } from "./store";

export interface PageQuery {
  limit: number;
  cursor?: string;
  min_revision?: number;
}

interface Page<T> {
  items: T[];
  next: string | null;
  revision: number;
}

export interface List {
  keys: string[];
  /** There are more than these. */
  more: boolean;
  loading: boolean;
  error: unknown;
  fetchMore: () => void;
}

const PAGE_SIZE = 200;

/** What of a change may concern a list; left out: objects that are not known yet, and those that are gone. */
export interface Following<K extends Kind> {
  moves?: (old: Kinds[K], now: Kinds[K]) => boolean;
  belongs?: (object: Kinds[K]) => boolean;
  /** Whether the reader may see it at all: what would be refused is not asked for. */
  allowed?: boolean;
}

/** The keys of a list's objects, as far as they were loaded. `parameters` tell one list of a kind from another. */
export function useList<K extends Kind>(
  kind: K,
  parameters: Record<string, string | undefined>,
  fetchPage: (query: PageQuery) => Promise<Page<Kinds[K]>>,
  { moves = () => false, belongs = () => true, allowed = true }: Following<K> = {},
): List {
  const state = useConnection();
  const meta: ListMeta = { kind, moves: moves as ListMeta["moves"], belongs: belongs as ListMeta["belongs"] };
  const query = useInfiniteQuery({
    queryKey: ["list", kind, parameters],
    meta,
    enabled: allowed && state !== "connecting", // the answer must not be older than the stream's beginning
    initialPageParam: null as string | null,
    placeholderData: keepPreviousData,
    queryFn: ({ pageParam }) =>
      store.asking(async () => {
        const at = store.revision;
        const page = await fetchPage({
          limit: PAGE_SIZE,
          ...(pageParam === null ? {} : { cursor: pageParam }),
          ...(at === 0 ? {} : { min_revision: at }),
        });
        return { keys: store.admit(kind, page.items, page.revision), next: page.next };
      }),
    getNextPageParam: (page) => page.next,
  });
  const loaded = useKeys(query);
  return allowed ? loaded : { ...loaded, loading: false, error: new Error(t("Your role does not allow it.")) };
}

function useKeys(query: UseInfiniteQueryResult<{ pages: { keys: string[]; next: string | null }[] }>): List {
  const keys = useMemo(() => [...new Set(query.data?.pages.flatMap((page) => page.keys) ?? [])], [query.data]);
  return {
    keys,
    more: query.hasNextPage,
    loading: query.isPending,
    error: query.error,
    fetchMore: () => {
      if (query.hasNextPage && !query.isFetching) void query.fetchNextPage();
    },
  };
}

/** Load all of a list that is known to be short, at most `pages` pages. */
export function useWhole(list: List, pages = 5): List {
  const { more, keys, fetchMore } = list;
  useEffect(() => {
    if (more && keys.length < pages * PAGE_SIZE) fetchMore();
  }, [more, keys.length, pages, fetchMore]);
  return list;
}
