/** A titled list that the stream keeps current. */
import { Title } from "@patternfly/react-core";
import type { ReactElement, ReactNode } from "react";
import { t } from "../i18n";
import type { List } from "../list";
import { store } from "../live";
import type { Kind, Kinds } from "../store";
import { ColumnsButton, useColumns } from "./columns";
import { CsvButton } from "./csv";
import { type Operation, OperationButton } from "./operation";
import { type Column, LiveTable, type Sorting } from "./table";

interface Props<K extends Kind> {
  kind: K;
  title: string;
  list: List;
  columns: readonly Column<Kinds[K]>[];
  empty: string;
  create?: Operation;
  sorting?: Sorting;
  level?: "h1" | "h2";
  children?: ReactNode;
}

export function LiveList<K extends Kind>({ kind, title, list, columns, empty, create, sorting, level = "h1", children }: Props<K>): ReactElement {
  const own = useColumns(kind, columns);
  const objects = (): Kinds[K][] => list.keys.map((key) => store.get(kind, key)).filter((object) => object !== undefined);
  return (
    <section className="nc-section" aria-label={t(title)}>
      <div className="nc-bar">
        <Title headingLevel={level}>{t(title)}</Title>
        <span className="nc-grow" />
        <ColumnsButton title={title} columns={own} />
        <CsvButton title={title} columns={own.shown} objects={objects} />
        {create !== undefined && <OperationButton operation={create} primary={level === "h1"} />}
      </div>
      {children}
      <LiveTable kind={kind} label={title} list={list} columns={own.shown} empty={empty} {...(sorting !== undefined && { sorting })} />
    </section>
  );
}
