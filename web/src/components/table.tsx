/** A table of which only the visible rows exist, however long it is. Each row follows its object by itself. */
import { Button, Checkbox, EmptyState, EmptyStateBody } from "@patternfly/react-core";
import { useVirtualizer } from "@tanstack/react-virtual";
import { memo, type ReactElement, useEffect, useRef } from "react";
import { type Column, leastWidth } from "../columns";
import type { List } from "../list";
import { useObject } from "../live";
import type { Kind, Kinds } from "../store";
import { Refusal } from "./notices";
import { t } from "../i18n";

export type { Column };

export interface Sorting {
  by: string;
  change: (by: string) => void;
}

export interface Selecting {
  selected: ReadonlySet<string>;
  toggle: (key: string) => void;
  all: (keys: readonly string[]) => void;
}

interface Props<K extends Kind> {
  kind: K;
  /** What the table shows, for screen readers. */
  label: string;
  list: List;
  columns: readonly Column<Kinds[K]>[];
  empty: string;
  sorting?: Sorting;
  selecting?: Selecting;
}

const ROW_PX = 40;
const AHEAD = 30;

export function LiveTable<K extends Kind>({ kind, label, list, columns, empty, sorting, selecting }: Props<K>): ReactElement {
  const scroller = useRef<HTMLDivElement>(null);
  const { keys, more, fetchMore } = list;
  const rows = useVirtualizer({
    count: keys.length,
    getScrollElement: () => scroller.current,
    estimateSize: () => ROW_PX,
    overscan: 12,
    getItemKey: (index) => keys[index] ?? index,
  });
  const visible = rows.getVirtualItems();
  const last = visible[visible.length - 1]?.index ?? 0;
  useEffect(() => {
    if (more && last > keys.length - AHEAD) fetchMore();
  }, [more, last, keys.length, fetchMore]);

  if (list.error !== null && keys.length === 0) return <Refusal title={t("{what} can't be shown", { what: t(label) })} error={list.error} />;
  if (list.loading) return <p role="status">{t("Asking the server …")}</p>;
  if (keys.length === 0) {
    return (
      <EmptyState headingLevel="h2" titleText={t("Nothing here")}>
        <EmptyStateBody>{t(empty)}</EmptyStateBody>
      </EmptyState>
    );
  }
  const widths = [...(selecting ? ["2.5rem"] : []), ...columns.map(({ width }) => width)];
  const tracks = widths.join(" ");
  const minWidth = `${leastWidth(widths)}rem`;
  return (
    <div className="nc-table" role="table" aria-label={t(label)} aria-rowcount={more ? -1 : keys.length + 1} ref={scroller} tabIndex={0}>
      <Head minWidth={minWidth} columns={columns} tracks={tracks} sorting={sorting} selecting={selecting} keys={keys} />
      <div role="rowgroup" className="nc-rows" style={{ height: rows.getTotalSize(), minWidth }}>
        {visible.map(({ key, index, start }) => (
          <Row
            key={key}
            kind={kind}
            id={keys[index] ?? ""}
            index={index}
            start={start}
            columns={columns}
            tracks={tracks}
            selecting={selecting}
            checked={selecting?.selected.has(keys[index] ?? "") ?? false}
          />
        ))}
      </div>
    </div>
  );
}

interface HeadProps<T> {
  minWidth: string;
  columns: readonly Column<T>[];
  tracks: string;
  sorting: Sorting | undefined;
  selecting: Selecting | undefined;
  keys: readonly string[];
}

function Head<T>({ minWidth, columns, tracks, sorting, selecting, keys }: HeadProps<T>): ReactElement {
  const chosen = selecting?.selected.size ?? 0;
  return (
    <div role="rowgroup" className="nc-head" style={{ minWidth }}>
      <div role="row" className="nc-row" style={{ gridTemplateColumns: tracks }}>
        {selecting && (
          <div role="columnheader">
            <Checkbox
              id="select-all"
              aria-label={t("Select all rows that are loaded")}
              isChecked={chosen === 0 ? false : chosen === keys.length ? true : null}
              onChange={(_, on) => selecting.all(on ? keys : [])}
            />
          </div>
        )}
        {columns.map(({ title, sort }) => (
          <div role="columnheader" key={title} {...(sort && sorting ? { "aria-sort": order(sort, sorting.by) } : {})}>
            {sort && sorting ? (
              <Button variant="plain" size="sm" onClick={() => sorting.change(sorting.by === sort ? `-${sort}` : sort)}>
                {t(title)} {sorting.by === sort ? "▲" : sorting.by === `-${sort}` ? "▼" : ""}
              </Button>
            ) : (
              <ColumnTitle title={title} />
            )}
          </div>
        ))}
      </div>
    </div>
  );
}

/** A column of buttons has a title for screen readers only. */
export function ColumnTitle({ title }: { title: string }): ReactElement {
  return title === "" ? <span className="pf-v6-screen-reader">{t("What can be done")}</span> : <>{t(title)}</>;
}

function order(field: string, by: string): "ascending" | "descending" | "none" {
  return by === field ? "ascending" : by === `-${field}` ? "descending" : "none";
}

interface RowProps<K extends Kind> {
  kind: K;
  id: string;
  index: number;
  start: number;
  columns: readonly Column<Kinds[K]>[];
  tracks: string;
  selecting: Selecting | undefined;
  checked: boolean;
}

function RowOf<K extends Kind>({ kind, id, index, start, columns, tracks, selecting, checked }: RowProps<K>): ReactElement {
  const object = useObject(kind, id);
  return (
    <div
      role="row"
      aria-rowindex={index + 2}
      className="nc-row nc-body-row"
      style={{ gridTemplateColumns: tracks, transform: `translateY(${start}px)` }}
    >
      {selecting && (
        <div role="cell">
          <Checkbox id={`select-${id}`} aria-label={t("Select this row")} isChecked={checked} onChange={() => selecting.toggle(id)} />
        </div>
      )}
      {object === undefined ? (
        <div role="cell" className="nc-gone">
          {t("no longer there")}
        </div>
      ) : (
        columns.map(({ title, cell }) => (
          <div role="cell" key={title}>
            {cell(object)}
          </div>
        ))
      )}
    </div>
  );
}

const Row = memo(RowOf) as typeof RowOf;
