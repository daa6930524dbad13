/** What went wrong, or was done, in the corner of the page. */
import { Alert, AlertActionCloseButton, AlertGroup } from "@patternfly/react-core";
import { type ReactElement, type ReactNode, useSyncExternalStore } from "react";
import { ApiError } from "../api";

interface Notice {
  id: number;
  title: string;
  text: string;
  hint: string | null;
  kind: "danger" | "success" | "info";
}

const SHOWN_MAX = 5;
let notices: readonly Notice[] = [];
let next = 0;
const listeners = new Set<() => void>();

function change(to: readonly Notice[]): void {
  notices = to;
  listeners.forEach((heard) => heard());
}

export function words(error: unknown): { text: string; hint: string | null } {
  const text = error instanceof Error ? error.message : String(error);
  return { text, hint: error instanceof ApiError ? error.hint : null };
}

export function refused(title: string, error: unknown): void {
  change([...notices.slice(1 - SHOWN_MAX), { id: next++, title, kind: "danger", ...words(error) }]);
}

/** Something failed that nobody asked for. */
export function failed(title: string, text: string): void {
  change([...notices.slice(1 - SHOWN_MAX), { id: next++, title, text, hint: null, kind: "danger" }]);
}

/** `passing`: it goes by itself, because nobody has to do anything. */
export function said(title: string, kind: "success" | "info" = "success", passing = true): void {
  const id = next++;
  change([...notices.slice(1 - SHOWN_MAX), { id, title, kind, text: "", hint: null }]);
  if (passing) setTimeout(() => dismiss(id), 6_000);
}

function dismiss(id: number): void {
  change(notices.filter((notice) => notice.id !== id));
}

/** `children`: what comes before them. */
export function Notices({ children }: { children?: ReactNode }): ReactElement {
  const shown = useSyncExternalStore(
    (heard) => {
      listeners.add(heard);
      return () => listeners.delete(heard);
    },
    () => notices,
  );
  return (
    <AlertGroup isToast isLiveRegion>
      {children}
      {shown.map(({ id, title, text, hint, kind }) => (
        <Alert key={id} variant={kind} title={title} actionClose={<AlertActionCloseButton onClose={() => dismiss(id)} />}>
          {text}
          {hint !== null && <div>{hint}</div>}
        </Alert>
      ))}
    </AlertGroup>
  );
}

/** A refusal on the page itself. */
export function Refusal({ title, error }: { title: string; error: unknown }): ReactElement {
  const { text, hint } = words(error);
  return (
    <Alert isInline variant="danger" title={title}>
      {text}
      {hint !== null && <div>{hint}</div>}
    </Alert>
  );
}
