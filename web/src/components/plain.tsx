/** Lists of what the stream does not send: asked for when the page opens, after each operation, and when the reader asks. */
import { Button, Title } from "@patternfly/react-core";
import { keepPreviousData, useInfiniteQuery } from "@tanstack/react-query";
import type { ReactElement, ReactNode } from "react";
import { t } from "../i18n";
import { ColumnsButton, useColumns } from "./columns";
import { CsvButton } from "./csv";
import { Refusal } from "./notices";
import { type Operation, OperationButton } from "./operation";
import { type Column, ColumnTitle } from "./table";
import { idOf, leastWidth } from "../columns";

interface Page<T> {
  items: readonly T[];
  next?: string | null;
}

interface Props<T> {
  title: string;
  /** Tells its answers from others'. */
  name: readonly (string | undefined)[];
  fetchPage: (cursor: string | undefined) => Promise<Page<T>>;
  columns: readonly Column<T>[];
  keyOf: (item: T) => string;
  empty: string;
  create?: Operation;
  /** h1 on a page of its own. */
  level?: "h1" | "h2";
  /** Filters. */
  children?: ReactNode;
}

export function PlainList<T>({ title, name, fetchPage, columns, keyOf, empty, create, level = "h2", children }: Props<T>): ReactElement {
  const query = useInfiniteQuery({
    queryKey: ["plain", ...name],
    initialPageParam: undefined as string | undefined,
    placeholderData: keepPreviousData,
    queryFn: ({ pageParam }) => fetchPage(pageParam),
    getNextPageParam: (page) => page.next ?? undefined,
  });
  const own = useColumns(idOf({ title }), columns);
  const items = query.data?.pages.flatMap((page) => page.items) ?? [];
  return (
    <section className="nc-section" aria-label={t(title)}>
      <div className="nc-bar">
        <Title headingLevel={level}>{t(title)}</Title>
        <span role="status" className="nc-small">
          {query.dataUpdatedAt > 0 && t("as of {time}", { time: new Date(query.dataUpdatedAt).toLocaleTimeString() })}
        </span>
        <Button size="sm" variant="link" aria-label={`${t("Refresh")}: ${t(title)}`} isDisabled={query.isFetching} onClick={() => void query.refetch()}>
          {t("Refresh")}
        </Button>
        <span className="nc-grow" />
        <ColumnsButton title={title} columns={own} />
        <CsvButton title={title} columns={own.shown} objects={() => items} />
        {create !== undefined && <OperationButton operation={create} primary={level === "h1"} />}
      </div>
      {children}
      {query.error !== null && <Refusal title={t("{what} can't be shown", { what: t(title) })} error={query.error} />}
      {query.isPending && <p role="status">{t("Asking the server …")}</p>}
      {query.isSuccess && items.length === 0 && <p>{t(empty)}</p>}
      {items.length > 0 && <Rows title={title} columns={own.shown} items={items} keyOf={keyOf} />}
      {query.hasNextPage && (
        <div>
          <Button variant="secondary" isLoading={query.isFetchingNextPage} onClick={() => void query.fetchNextPage()}>
            {t("Show more")}
          </Button>
        </div>
      )}
    </section>
  );
}

export function Rows<T>({ title, columns, items, keyOf }: { title: string; columns: readonly Column<T>[]; items: readonly T[]; keyOf: (item: T) => string }): ReactElement {
  const widths = columns.map(({ width }) => width);
  const tracks = { gridTemplateColumns: widths.join(" ") };
  const minWidth = `${leastWidth(widths)}rem`;
  return (
    <div className="nc-table" role="table" aria-label={t(title)} tabIndex={0}>
      <div role="rowgroup" className="nc-head" style={{ minWidth }}>
        <div role="row" className="nc-row" style={tracks}>
          {columns.map((column) => (
            <div role="columnheader" key={column.title}>
              <ColumnTitle title={column.title} />
            </div>
          ))}
        </div>
      </div>
      <div role="rowgroup" className="nc-rows" style={{ minWidth }}>
        {items.map((item) => (
          <div role="row" key={keyOf(item)} className="nc-row nc-plain-row" style={tracks}>
            {columns.map((column) => (
              <div role="cell" key={column.title}>
                {column.cell(item)}
              </div>
            ))}
          </div>
        ))}
      </div>
    </div>
  );
}
