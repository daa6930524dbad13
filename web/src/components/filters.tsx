/** Filters of a list that the server applies. They are in the address, and each is shown with a way to take it out. */
import { Label } from "@patternfly/react-core";
import type { ReactElement } from "react";
import { useSearch } from "wouter";
import { filtersIn, setAddress } from "../address";
import { m, t } from "../i18n";
import { OperationButton } from "./operation";

export interface Filter<N extends string = string> {
  /** As the API calls it. */
  name: N;
  label: string;
  help?: string;
}

export const BY_TAG: Filter<"tag"> = { name: "tag", label: m("Tag"), help: m("Several, with commas between them: all of them.") };
export const BY_PROJECT: Filter<"project"> = { name: "project", label: m("Project") };

/** What the address says of these filters. */
export function useFilters<N extends string>(filters: readonly Filter<N>[]): Partial<Record<N, string>> {
  return filtersIn(
    new URLSearchParams(useSearch()),
    filters.map(({ name }) => name),
  );
}

export function FilterBar<N extends string>({ title, filters }: { title: string; filters: readonly Filter<N>[] }): ReactElement {
  const said = useFilters(filters);
  const none = Object.fromEntries(filters.map(({ name }) => [name, ""]));
  return (
    <span className="nc-bar">
      <OperationButton
        operation={{
          label: m("Filter"),
          subject: t(title),
          quiet: true,
          fields: filters.map(({ name, label, help }) => ({ name, label, optional: true, value: said[name] ?? "", ...(help !== undefined && { help }) })),
          run: (values) => Promise.resolve(setAddress({ ...none, ...values })),
        }}
      />
      {filters.map(
        ({ name, label }) =>
          said[name] !== undefined && (
            <Label key={name} color="blue" onClose={() => setAddress({ [name]: "" })} closeBtnAriaLabel={t("Take out the filter: {filter}", { filter: t(label) })}>
              {t(label)}: {said[name]}
            </Label>
          ),
      )}
    </span>
  );
}
