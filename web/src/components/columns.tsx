/** Lets the reader choose and order the columns of a list. The choice is in the address, which can be shared, and in the browser's storage for the next time. */
import { Button, Checkbox, Modal, ModalBody, ModalFooter, ModalHeader } from "@patternfly/react-core";
import { type ReactElement, useEffect, useState } from "react";
import { useSearch } from "wouter";
import { setAddress } from "../address";
import { chosen, type Column, idOf, isButtons, moved, shown, toggled, usual, written } from "../columns";
import { t } from "../i18n";
import { userName } from "../session";

export interface Columns<T> {
  /** What the list is called in addresses. */
  name: string;
  all: readonly Column<T>[];
  shown: readonly Column<T>[];
  ids: readonly string[];
  choose: (ids: readonly string[]) => void;
}

export function useColumns<T>(list: string, all: readonly Column<T>[]): Columns<T> {
  const name = `${list}-columns`;
  const key = `novacron-columns-${userName()}-${list}`;
  const asked = new URLSearchParams(useSearch()).get(name);
  const [kept, setKept] = useState(() => localStorage.getItem(key));
  const ids = chosen(all, asked, kept);
  const missing = asked === null ? written(all, ids) : "";
  useEffect(() => {
    if (missing !== "") setAddress({ [name]: missing });
  }, [name, missing]);
  const choose = (next: readonly string[]): void => {
    const text = written(all, next);
    if (text === "") localStorage.removeItem(key);
    else localStorage.setItem(key, text);
    setKept(text);
    setAddress({ [name]: text });
  };
  return { name, all, shown: shown(all, ids), ids, choose };
}

export function ColumnsButton<T>({ title, columns }: { title: string; columns: Columns<T> }): ReactElement {
  const [open, setOpen] = useState(false);
  return (
    <>
      <Button size="sm" variant="secondary" aria-label={`${t("Columns")}: ${t(title)}`} onClick={() => setOpen(true)}>
        {t("Columns")}
      </Button>
      {open && <Picker title={title} columns={columns} close={() => setOpen(false)} />}
    </>
  );
}

function Picker<T>({ title, columns: { name, all, ids, choose }, close }: { title: string; columns: Columns<T>; close: () => void }): ReactElement {
  const titles = new Map(all.filter((column) => !isButtons(column)).map((column) => [idOf(column), t(column.title)]));
  const others = [...titles.keys()].filter((id) => !ids.includes(id));
  return (
    <Modal isOpen variant="small" onClose={close} aria-labelledby="columns">
      <ModalHeader title={`${t("Columns")}: ${t(title)}`} labelId="columns" description={t("Kept for you in this browser, and part of the address.")} />
      <ModalBody tabIndex={0} aria-label={t("Columns")}>
        <ul className="nc-columns">
          {[...ids, ...others].map((id) => (
            <li key={id}>
              <Checkbox id={`${name}-${id}`} label={titles.get(id) ?? id} isChecked={ids.includes(id)} isDisabled={ids.length === 1 && ids.includes(id)} onChange={() => choose(toggled(ids, id))} />
              <span className="nc-grow" />
              {ids.includes(id) && <MoveButtons id={id} title={titles.get(id) ?? id} ids={ids} choose={choose} />}
            </li>
          ))}
        </ul>
      </ModalBody>
      <ModalFooter>
        <Button onClick={close}>{t("Close")}</Button>
        <Button variant="link" onClick={() => choose(usual(all))}>
          {t("The usual columns")}
        </Button>
      </ModalFooter>
    </Modal>
  );
}

interface MoveProps {
  id: string;
  title: string;
  ids: readonly string[];
  choose: (ids: readonly string[]) => void;
}

function MoveButtons({ id, title, ids, choose }: MoveProps): ReactElement {
  return (
    <>
      <Button variant="plain" size="sm" isAriaDisabled={ids[0] === id} aria-label={t("Move {column} forward", { column: title })} onClick={() => choose(moved(ids, id, -1))}>
        ▲
      </Button>
      <Button variant="plain" size="sm" isAriaDisabled={ids[ids.length - 1] === id} aria-label={t("Move {column} back", { column: title })} onClick={() => choose(moved(ids, id, 1))}>
        ▼
      </Button>
    </>
  );
}
