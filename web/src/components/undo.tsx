/** What is held back, with its countdown and the way to take it back. */
import { Alert, AlertActionLink } from "@patternfly/react-core";
import { type ReactElement, useEffect, useState, useSyncExternalStore } from "react";
import { type Dropped, type Held, HELD_MAX, HeldRequests, type Request } from "../held";
import { m, t } from "../i18n";
import { refused, said } from "./notices";

const NAMES_SHOWN_MAX = 5;
const TICK_MS = 250;

const WHY: Record<Dropped, string> = {
  undone: m("{title}: undone, nothing was sent"),
  late: m("{title}: not sent, because this computer slept meanwhile. Do it again if you still want it."),
  ended: m("{title}: not sent, because the session ended or the page was left"),
};

const requests = new HeldRequests({
  now: () => Date.now(),
  later: (call, ms) => {
    const timer = setTimeout(call, ms);
    return () => clearTimeout(timer);
  },
  dropped: ({ title }, why) => said(t(WHY[why], { title }), "info", why === "undone"),
});

window.addEventListener("beforeunload", (event) => {
  if (requests.all.length > 0) event.preventDefault(); // the browser asks whether to leave
});
window.addEventListener("pagehide", () => requests.end());

/** Do something in some seconds, unless it is undone. */
export function hold(request: Request): void {
  if (!requests.hold(request)) refused(request.title, new Error(t("{count} requests wait already. Undo one, or do it now.", { count: HELD_MAX })));
}

export function endHeld(): void {
  requests.end();
}

export function undoNewest(): void {
  requests.undoNewest();
}

const subscribe = (heard: () => void): (() => void) => requests.subscribe(heard);

export function useHeld(): readonly Held[] {
  return useSyncExternalStore(subscribe, () => requests.all);
}

export const HELD_ALREADY = m("It is about to be sent: undo it, or wait.");

export function HeldAlert({ held }: { held: Held }): ReactElement {
  const { id, title, names } = held;
  const actions = (
    <>
      <AlertActionLink onClick={() => requests.undo(id)} aria-label={`${t("Undo")}: ${title}`}>
        {t("Undo")}
      </AlertActionLink>
      <AlertActionLink onClick={() => requests.sendNow(id)} aria-label={`${t("Do it now")}: ${title}`}>
        {t("Do it now")}
      </AlertActionLink>
    </>
  );
  return (
    <Alert variant="warning" title={title} actionLinks={actions}>
      {names.length > 1 && <div>{[...names.slice(0, NAMES_SHOWN_MAX), ...(names.length > NAMES_SHOWN_MAX ? [t("{count} more", { count: names.length - NAMES_SHOWN_MAX })] : [])].join(", ")}</div>}
      <Countdown due={held.due_at} />
    </Alert>
  );
}

/** Screen readers hear it once, with the rest, and not each second. */
function Countdown({ due }: { due: number }): ReactElement {
  const [now, setNow] = useState(() => Date.now());
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), TICK_MS);
    return () => clearInterval(timer);
  }, []);
  return (
    <div role="timer" aria-live="off">
      {t("Sent in {seconds} s", { seconds: Math.max(0, Math.ceil((due - now) / 1000)) })}
    </div>
  );
}
