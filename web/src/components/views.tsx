/** Views that the reader has saved: a page's filters and order, by a name. They are kept in the browser only. */
import { FormSelect, FormSelectOption } from "@patternfly/react-core";
import { type ReactElement, useState } from "react";
import { useSearchParams } from "wouter";
import { m, t } from "../i18n";
import { OperationButton } from "./operation";

const VIEWS_MAX = 50;
type Saved = Record<string, string>;

function stored(key: string): Saved {
  try {
    const saved: unknown = JSON.parse(localStorage.getItem(key) ?? "{}");
    return typeof saved === "object" && saved !== null ? (saved as Saved) : {};
  } catch {
    return {}; // what somebody else has written there is no view
  }
}

export function Views({ page }: { page: string }): ReactElement {
  const key = `novacron-views-${page}`;
  const [saved, setSaved] = useState(() => stored(key));
  const [address, setAddress] = useSearchParams();
  const search = address.toString();
  const keep = (views: Saved): void => {
    localStorage.setItem(key, JSON.stringify(views));
    setSaved(views);
  };
  const current = Object.keys(saved).find((name) => saved[name] === search) ?? "";
  return (
    <>
      {Object.keys(saved).length > 0 && (
        <FormSelect className="nc-filter" aria-label={t("Saved view")} value={current} onChange={(_, name) => setAddress(saved[name] ?? "")}>
          <FormSelectOption value="" label={t("Saved views")} />
          {Object.keys(saved).map((name) => (
            <FormSelectOption key={name} value={name} label={name} />
          ))}
        </FormSelect>
      )}
      {current === "" ? (
        <OperationButton
          operation={{
            label: m("Save this view"),
            refusal: search === "" ? m("Filter or sort first.") : Object.keys(saved).length >= VIEWS_MAX ? m("Delete another view first.") : null,
            fields: [{ name: "name", label: m("Name") }],
            run: ({ name = "" }) => Promise.resolve(keep({ ...saved, [name]: search })),
          }}
        />
      ) : (
        <OperationButton operation={{ label: m("Delete this view"), run: () => Promise.resolve(keep(Object.fromEntries(Object.entries(saved).filter(([name]) => name !== current)))) }} />
      )}
    </>
  );
}
