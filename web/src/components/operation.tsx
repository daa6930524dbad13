/** Anything that the API can do, as a button: its form, the question before what can't be undone, and what it answered. */
import { Button, Checkbox, Form, FormGroup, FormHelperText, FormSelect, FormSelectOption, HelperText, HelperTextItem, Modal, ModalBody, ModalFooter, ModalHeader, TextArea, TextInput, Tooltip } from "@patternfly/react-core";
import { useMutation } from "@tanstack/react-query";
import { type FormEvent, type ReactElement, type ReactNode, useEffect, useState, useSyncExternalStore } from "react";
import { useLocation } from "wouter";
import { ApiError } from "../api";
import { t } from "../i18n";
import { queries } from "../live";
import { refused, Refusal, said } from "./notices";
import { hold, HELD_ALREADY, useHeld } from "./undo";

export type Values = Readonly<Record<string, string>>;

export interface Field {
  /** As the API calls it: a refusal that names it is shown at it. */
  name: string;
  label: string;
  kind?: "text" | "number" | "password" | "check" | "lines";
  /** What can be chosen; the first is what it begins with, unless `value` says otherwise. */
  options?: readonly string[];
  /** May stay empty. */
  optional?: boolean;
  /** What it begins with. */
  value?: string;
  help?: string;
}

export interface Operation {
  label: string;
  /** What it is done to, as the question names it. */
  subject?: string;
  fields?: readonly Field[];
  /** What happens. Without it and without fields, nothing is asked. */
  warning?: string;
  /** A word that must be typed, because nobody can undo it. */
  confirm?: string;
  /** Held back for some seconds once it is confirmed, so that it can be undone; left out: if a word must be typed, and nothing is shown. */
  undo?: boolean;
  /** Its success is seen on the page, and not said. */
  quiet?: boolean;
  /** Why it can't be done, in words. */
  refusal?: string | null;
  /** The same as a command. */
  command?: (values: Values) => string;
  run: (values: Values) => Promise<unknown>;
  /** What of the answer has to be shown, such as a secret that is shown once. */
  show?: (answer: never) => ReactNode;
}

/** What was typed; nothing: left to the platform. */
export const given = (text: string | undefined): string | undefined => (text === undefined || text === "" ? undefined : text);
export const number = (text: string | undefined): number | undefined => (given(text) === undefined ? undefined : Number(text));
export const checked = (text: string | undefined): boolean => text === "true";
export const lines = (text: string | undefined): string[] => (text ?? "").split(/[\n,]/).map((line) => line.trim()).filter((line) => line !== "");

let current: Operation | null = null;
const listeners = new Set<() => void>();

function change(to: Operation | null): void {
  current = to;
  listeners.forEach((heard) => heard());
}

function asks({ fields, warning, confirm }: Operation): boolean {
  return fields !== undefined || warning !== undefined || confirm !== undefined;
}

function isHeld({ undo, confirm, show }: Operation): boolean {
  return undo ?? (confirm !== undefined && show === undefined);
}

const titleOf = ({ label, subject }: Operation): string => (subject === undefined ? t(label) : `${t(label)}: ${subject}`);

/** Send it in some seconds. A refusal is then said in the corner of the page, where its dialog is long closed. */
function holdBack(operation: Operation, values: Values): void {
  const title = titleOf(operation);
  const send = async (): Promise<void> => {
    try {
      await operation.run(values);
      done(operation);
    } catch (error) {
      refused(title, error);
    }
  };
  hold({ title, names: [], keys: [title], send: () => void send() });
}

/** Ask for what an operation needs, then do it. */
export function start(operation: Operation): void {
  if (!asks(operation) && operation.show === undefined) void perform(operation);
  else change(operation);
}

async function perform(operation: Operation): Promise<void> {
  try {
    await operation.run({});
    done(operation);
  } catch (error) {
    change({ ...operation, warning: "", run: () => Promise.reject(error) });
  }
}

function done(operation: Operation): void {
  if (operation.show !== undefined && !asks(operation)) return; // it only looked
  if (operation.quiet === true) return;
  said(`${t(operation.label)}: ${operation.subject === undefined ? t("done") : operation.subject}`);
  void queries.invalidateQueries({ queryKey: ["plain"] });
}

export function OperationButton({ operation, primary = false }: { operation: Operation; primary?: boolean }): ReactElement {
  const { label, confirm } = operation;
  const held = useHeld().some(({ keys }) => keys.includes(titleOf(operation)));
  const refusal = operation.refusal ?? (held ? HELD_ALREADY : null);
  const button = (
    <Button
      size={primary ? "default" : "sm"}
      variant={primary ? "primary" : confirm === undefined ? "secondary" : "danger"}
      isAriaDisabled={refusal !== null}
      aria-label={titleOf(operation)}
      onClick={() => start(operation)}
    >
      {t(label)}
    </Button>
  );
  return refusal === null ? button : <Tooltip content={t(refusal)}>{button}</Tooltip>;
}

/** A page about an object, beside what can be done with it. */
export function LinkButton({ label, subject, href, refusal }: { label: string; subject: string; href: string; refusal: string | null }): ReactElement {
  const [, go] = useLocation();
  const button = (
    <Button size="sm" variant="secondary" isAriaDisabled={refusal !== null} aria-label={`${t(label)}: ${subject}`} onClick={() => go(href)}>
      {t(label)}
    </Button>
  );
  return refusal === null ? button : <Tooltip content={t(refusal)}>{button}</Tooltip>;
}

/** Several, in a row. */
export function OperationBar({ operations }: { operations: readonly Operation[] }): ReactElement {
  return (
    <span className="nc-operations">
      {operations.map((operation) => (
        <OperationButton key={operation.label} operation={operation} />
      ))}
    </span>
  );
}

/** The dialog of the operation that was started; one for all, so that a list that changes does not close it. */
export function OperationDialog(): ReactElement | null {
  const operation = useSyncExternalStore(
    (heard) => {
      listeners.add(heard);
      return () => listeners.delete(heard);
    },
    () => current,
  );
  return operation === null ? null : <Dialog key={`${operation.label} ${operation.subject ?? ""}`} operation={operation} />;
}

function firstValue({ value, options }: Field): string {
  return value ?? options?.[0] ?? "";
}

function Dialog({ operation }: { operation: Operation }): ReactElement {
  const { label, fields = [], warning, confirm, command, run, show } = operation;
  const [values, setValues] = useState<Values>(() => Object.fromEntries(fields.map((field) => [field.name, firstValue(field)])));
  const [typed, setTyped] = useState("");
  const close = (): void => change(null);
  const doing = useMutation({
    mutationFn: () => run(values),
    onSuccess: () => {
      done(operation);
      if (show === undefined) close();
    },
  });
  const { mutate } = doing;
  const looks = !asks(operation);
  useEffect(() => {
    if (looks) mutate();
  }, [looks, mutate]);
  const submit = (event: FormEvent): void => {
    event.preventDefault();
    if (isHeld(operation)) {
      close();
      holdBack(operation, values);
    } else mutate();
  };
  const wrong = doing.error instanceof ApiError ? doing.error.field : null;
  const incomplete = fields.some(({ name, optional, kind }) => !optional && kind !== "check" && values[name] === "");
  const title = titleOf(operation);
  return (
    <Modal isOpen variant="medium" onClose={close} aria-labelledby="operation">
      <ModalHeader title={title} labelId="operation" />
      <ModalBody tabIndex={0} aria-label={title}>
        {warning !== undefined && warning !== "" && <p>{t(warning)}</p>}
        {doing.error !== null && <Refusal title={t("Refused")} error={doing.error} />}
        {doing.isSuccess && show !== undefined ? (
          <div role="status">{show(doing.data as never)}</div>
        ) : (
          <Form id="operation-form" onSubmit={submit}>
            {fields.map((field) => (
              <Input key={field.name} field={field} value={values[field.name] ?? ""} wrong={wrong === field.name} set={(value) => setValues({ ...values, [field.name]: value })} />
            ))}
            {confirm !== undefined && (
              <FormGroup label={t("Type {word} to confirm", { word: confirm })} fieldId="operation-confirm">
                <TextInput id="operation-confirm" value={typed} onChange={(_, value) => setTyped(value)} />
              </FormGroup>
            )}
          </Form>
        )}
        {command !== undefined && !doing.isSuccess && (
          <details>
            <summary>{t("The same as a command")}</summary>
            <code className="nc-command">{command(values)}</code>
          </details>
        )}
      </ModalBody>
      <ModalFooter>
        {!doing.isSuccess && !looks && (
          <Button
            type="submit"
            form="operation-form"
            variant={confirm === undefined ? "primary" : "danger"}
            isLoading={doing.isPending}
            isDisabled={doing.isPending || incomplete || (confirm !== undefined && typed !== confirm)}
          >
            {t(label)}
          </Button>
        )}
        <Button variant="link" onClick={close}>
          {doing.isSuccess || looks ? t("Close") : t("Cancel")}
        </Button>
      </ModalFooter>
    </Modal>
  );
}

interface InputProps {
  field: Field;
  value: string;
  wrong: boolean;
  set: (value: string) => void;
}

function Input({ field, value, wrong, set }: InputProps): ReactElement {
  const { name, label, kind = "text", options, help, optional = false } = field;
  const id = `operation-${name}`;
  if (kind === "check") return <Checkbox id={id} label={t(label)} isChecked={value === "true"} onChange={(_, on) => set(String(on))} />;
  const validated = wrong ? "error" : "default";
  return (
    <FormGroup label={t(label)} fieldId={id} isRequired={!optional}>
      {options !== undefined ? (
        <FormSelect id={id} value={value} validated={validated} onChange={(_, chosen) => set(chosen)}>
          {options.map((option) => (
            <FormSelectOption key={option} value={option} label={option === "" ? t("none") : option} />
          ))}
        </FormSelect>
      ) : kind === "lines" ? (
        <TextArea id={id} value={value} validated={validated} resizeOrientation="vertical" onChange={(_, text) => set(text)} />
      ) : (
        <TextInput id={id} type={kind} value={value} validated={validated} {...(kind === "password" && { autoComplete: "off" })} onChange={(_, text) => set(text)} />
      )}
      {help !== undefined && (
        <FormHelperText>
          <HelperText>
            <HelperTextItem>{t(help)}</HelperTextItem>
          </HelperText>
        </FormHelperText>
      )}
    </FormGroup>
  );
}
