/** Saves what a table shows as a file of comma-separated values. */
import { Button } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { csv } from "../csv";
import { t } from "../i18n";
import type { Column } from "./table";

interface Props<T> {
  title: string;
  columns: readonly Column<T>[];
  objects: () => readonly T[];
}

function textOf<T>(column: Column<T>, object: T): string {
  if (column.text !== undefined) return column.text(object);
  const shown = column.cell(object);
  return typeof shown === "string" || typeof shown === "number" ? String(shown) : "";
}

function save<T>({ title, columns, objects }: Props<T>): void {
  const shown = columns.filter(({ title: name }) => name !== "");
  const rows = objects().map((object) => shown.map((column) => textOf(column, object)));
  const address = URL.createObjectURL(new Blob([csv([shown.map((column) => t(column.title)), ...rows])], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = `${title.toLowerCase().replaceAll(" ", "-")}.csv`;
  link.click();
  URL.revokeObjectURL(address);
}

export function CsvButton<T>(props: Props<T>): ReactElement {
  return (
    <Button size="sm" variant="secondary" aria-label={`CSV: ${t(props.title)}`} onClick={() => save(props)}>
      {t("CSV")}
    </Button>
  );
}
