/** Doing something with VMs: the buttons, why they are off, and the question before what can't be taken back. */
import { Button, Modal, ModalBody, ModalFooter, ModalHeader, TextInput, Tooltip } from "@patternfly/react-core";
import { type ReactElement, useState } from "react";
import { ACTIONS, runOn, type VmAction } from "../actions";
import type { Vm } from "../api";
import { countVms } from "../format";
import { t } from "../i18n";
import { refused, said } from "./notices";
import { hold, HELD_ALREADY, useHeld } from "./undo";

interface Asked {
  action: VmAction;
  /** As they were when the question was asked: nothing that happens behind it changes whom it is about. */
  vms: readonly Vm[];
}

const keyOf = (action: VmAction, vm: Vm): string => `vm ${vm.id} ${action.id}`;

/** Why an action can't be done with a VM; null: it can. */
type Refuse = (action: VmAction, vm: Vm) => string | null;

function useRefusals(): Refuse {
  const held = useHeld();
  return (action, vm) => action.refusal(vm) ?? (held.some(({ keys }) => keys.includes(keyOf(action, vm))) ? HELD_ALREADY : null);
}

/** Why an action can't be done with any of these; null: it can with some. */
function refusalOf(action: VmAction, vms: readonly Vm[], refuse: Refuse): string | null {
  if (vms.length === 0) return t("Select VMs first.");
  const refusals = vms.map((vm) => refuse(action, vm));
  return refusals.every((refusal) => refusal !== null) ? (refusals[0] ?? null) : null;
}

async function perform({ action, vms }: Asked): Promise<void> {
  const failed = await runOn(action, vms);
  for (const { vm, error } of failed.slice(0, 3)) refused(`${t(action.label)}: ${vm.name}`, error);
  if (failed.length > 3) refused(t(action.label), new Error(t("{count} more were refused", { count: failed.length - 3 })));
  if (failed.length < vms.length) said(t("{action}: accepted for {vms}", { action: t(action.label), vms: countVms(vms.length - failed.length) }));
}

/** What a guest would notice, or nobody could undo, is held back for a while first. */
function begin(asked: Asked): void {
  const { action, vms } = asked;
  if (action.warning === null) {
    void perform(asked);
    return;
  }
  const names = vms.map(({ name }) => name);
  hold({
    title: `${t(action.label)}: ${names.length === 1 ? (names[0] ?? "") : countVms(names.length)}`,
    names,
    keys: vms.map((vm) => keyOf(action, vm)),
    send: () => void perform(asked),
  });
}

interface Props {
  vms: readonly Vm[];
  /** Whether the caller may change them at all; a sentence: why not. */
  forbidden: string | null;
  done?: () => void;
}

export function VmActions({ vms, forbidden, done }: Props): ReactElement {
  const [asked, setAsked] = useState<Asked | null>(null);
  const refuse = useRefusals();
  const act = (request: Asked): void => {
    setAsked(null);
    done?.();
    begin(request);
  };
  return (
    <>
      {ACTIONS.map((action) => {
        const why = forbidden ?? refusalOf(action, vms, refuse);
        const able = vms.filter((vm) => refuse(action, vm) === null);
        const request = { action, vms: able };
        const button = (
          <Button
            key={action.id}
            size="sm"
            variant={action.final ? "danger" : "secondary"}
            isAriaDisabled={why !== null}
            onClick={() => (action.warning === null ? act(request) : setAsked(request))}
          >
            {t(action.label)}
          </Button>
        );
        return why === null ? (
          button
        ) : (
          <Tooltip key={action.id} content={t(why)}>
            {button}
          </Tooltip>
        );
      })}
      {asked !== null && <Question asked={asked} cancel={() => setAsked(null)} confirm={() => act(asked)} />}
    </>
  );
}

function Question({ asked, cancel, confirm }: { asked: Asked; cancel: () => void; confirm: () => void }): ReactElement {
  const { action, vms } = asked;
  const [typed, setTyped] = useState("");
  const first = vms[0];
  const word = vms.length === 1 ? (first?.name ?? "") : `${action.id} ${vms.length}`;
  return (
    <Modal isOpen variant="small" onClose={cancel} aria-labelledby="question" aria-describedby="consequence">
      <ModalHeader title={`${t(action.label)}: ${vms.length === 1 ? word : countVms(vms.length)}`} labelId="question" />
      <ModalBody id="consequence">
        <p>{t(action.warning ?? "")}</p>
        {vms.length > 1 && (
          <ul className="nc-names">
            {vms.map((vm) => (
              <li key={vm.id}>{vm.name}</li>
            ))}
          </ul>
        )}
        {first !== undefined && (
          <details>
            <summary>{t("The same as a command and as a request")}</summary>
            <code className="nc-command">{action.command(first)}</code>
            <code className="nc-command">{action.request(first)}</code>
          </details>
        )}
        {action.final && (
          <label>
            {t("Type {word} to confirm", { word })}
            <TextInput aria-label={t("Type {word} to confirm", { word })} value={typed} onChange={(_, value) => setTyped(value)} />
          </label>
        )}
      </ModalBody>
      <ModalFooter>
        <Button variant={action.final ? "danger" : "primary"} isDisabled={action.final && typed !== word} onClick={confirm}>
          {t(action.label)}
        </Button>
        <Button variant="link" onClick={cancel}>
          {t("Cancel")}
        </Button>
      </ModalFooter>
    </Modal>
  );
}
