/** The keyboard: a palette of pages and VMs, a key for the search, rows by j and k, and the list of all keys. */
import { Modal, ModalBody, ModalHeader, SearchInput } from "@patternfly/react-core";
import { useQuery } from "@tanstack/react-query";
import { type KeyboardEvent as Key, type ReactElement, useEffect, useState } from "react";
import { useLocation } from "wouter";
import { answered, client } from "../api";
import { m, t } from "../i18n";
import { undoNewest } from "./undo";

const KEYS: readonly (readonly [string, string])[] = [
  ["Ctrl K", m("Go to a page or a VM")],
  ["/", m("Search on this page")],
  ["j, k", m("Next row, row before")],
  ["Enter", m("Open the row")],
  ["x", m("Select the row")],
  ["c", m("Create a VM")],
  ["u", m("Undo what is about to be sent")],
  ["?", m("Show these keys")],
];
const FOUND_MAX = 10;

export interface Entry {
  path: string;
  title: string;
}

/** Whether a key is for what it was pressed in: a field, or a guest. */
function isTypedInto(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && (target.matches("input:not([type=checkbox]), textarea, select, [contenteditable]") || isGuest(target));
}

function isGuest(target: EventTarget | null): boolean {
  return target instanceof HTMLElement && target.closest(".nc-terminal, .nc-display") !== null;
}

function rows(): HTMLElement[] {
  return [...document.querySelectorAll<HTMLElement>("main .nc-body-row, main .nc-plain-row")];
}

function currentRow(): HTMLElement | null {
  return document.activeElement?.closest<HTMLElement>(".nc-body-row, .nc-plain-row") ?? null;
}

/** Rows may stand in any order in the document: their places on the page count. */
function moveRow(by: 1 | -1): void {
  const ordered = rows().sort((one, other) => one.getBoundingClientRect().top - other.getBoundingClientRect().top);
  const row = currentRow();
  const next = ordered[row === null ? 0 : ordered.indexOf(row) + by];
  if (next === undefined) return;
  next.tabIndex = -1;
  next.focus();
}

/** Do what a key stands for; false: it stands for nothing here. */
function act(key: string, go: (path: string) => void): boolean {
  switch (key) {
    case "/":
      document.querySelector<HTMLElement>("main .nc-filter input, main input")?.focus();
      return true;
    case "j":
      moveRow(1);
      return true;
    case "k":
      moveRow(-1);
      return true;
    case "x":
      currentRow()?.querySelector<HTMLElement>("input[type=checkbox]")?.click();
      return true;
    case "Enter":
      if (document.activeElement !== currentRow()) return false;
      currentRow()?.querySelector<HTMLElement>("a")?.click();
      return true;
    case "c":
      go("/vms/create");
      return true;
    case "u":
      undoNewest();
      return true;
    default:
      return false;
  }
}

export function Keyboard({ pages }: { pages: readonly Entry[] }): ReactElement | null {
  const [shown, setShown] = useState<"palette" | "keys" | null>(null);
  const [, go] = useLocation();
  useEffect(() => {
    const pressed = (event: KeyboardEvent): void => {
      if (event.key === "k" && (event.ctrlKey || event.metaKey) && !isGuest(event.target)) {
        setShown("palette");
      } else if (event.ctrlKey || event.metaKey || event.altKey || isTypedInto(event.target) || document.querySelector("[role=dialog]") !== null) {
        return;
      } else if (event.key === "?") {
        setShown("keys");
      } else if (!act(event.key, go)) {
        return;
      }
      event.preventDefault();
    };
    window.addEventListener("keydown", pressed);
    return () => window.removeEventListener("keydown", pressed);
  }, [go]);
  const close = (): void => setShown(null);
  if (shown === "keys") return <Shortcuts close={close} />;
  return shown === "palette" ? <Palette pages={pages} close={close} go={go} /> : null;
}

function Shortcuts({ close }: { close: () => void }): ReactElement {
  return (
    <Modal isOpen variant="small" onClose={close} aria-labelledby="keys">
      <ModalHeader title={t("Keys")} labelId="keys" />
      <ModalBody>
        <dl className="nc-keys">
          {KEYS.map(([key, meaning]) => (
            <div key={key}>
              <dt>
                <kbd>{key}</kbd>
              </dt>
              <dd>{t(meaning)}</dd>
            </div>
          ))}
        </dl>
      </ModalBody>
    </Modal>
  );
}

function Palette({ pages, close, go }: { pages: readonly Entry[]; close: () => void; go: (path: string) => void }): ReactElement {
  const [typed, setTyped] = useState("");
  const [at, setAt] = useState(0);
  const wanted = typed.trim().toLowerCase();
  const vms = useQuery({
    queryKey: ["palette", wanted],
    enabled: wanted !== "",
    staleTime: 0,
    queryFn: () => answered(client.GET("/api/v1/vms", { params: { query: { name: `${wanted}*`, limit: FOUND_MAX } } })),
  });
  const entries: Entry[] = [
    ...pages.filter(({ title }) => t(title).toLowerCase().includes(wanted)).map(({ path, title }) => ({ path, title: t(title) })),
    ...(wanted === "" ? [] : (vms.data?.items ?? []).map(({ id, name }) => ({ path: `/vms/${id}`, title: t("VM {name}", { name }) }))),
  ];
  const chosen = Math.min(at, entries.length - 1);
  const open = (entry: Entry | undefined): void => {
    if (entry === undefined) return;
    close();
    go(entry.path);
  };
  const pressed = (event: Key): void => {
    if (event.key === "ArrowDown") setAt(Math.min(chosen + 1, entries.length - 1));
    else if (event.key === "ArrowUp") setAt(Math.max(chosen - 1, 0));
    else if (event.key === "Enter") open(entries[chosen]);
    else return;
    event.preventDefault();
  };
  return (
    <Modal isOpen variant="small" position="top" onClose={close} aria-label={t("Go to a page or a VM")} elementToFocus="#palette-input input, #palette-input">
      <ModalBody>
        <SearchInput
          searchInputId="palette-input"
          aria-label={t("Page or VM")}
          placeholder={t("Page or VM")}
          value={typed}
          onChange={(_, value) => {
            setTyped(value);
            setAt(0);
          }}
          onKeyDown={pressed}
          role="combobox"
          aria-expanded
          aria-controls="palette-list"
        />
        <ul id="palette-list" role="listbox" aria-label={t("Pages and VMs")} className="nc-palette">
          {entries.map((entry, index) => (
            <li key={entry.path} role="option" aria-selected={index === chosen} onClick={() => open(entry)}>
              {entry.title}
            </li>
          ))}
        </ul>
      </ModalBody>
    </Modal>
  );
}
