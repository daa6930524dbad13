/** The display: VNC on a ticketed WebSocket. */
import { Button, FormSelect, FormSelectOption, TextArea } from "@patternfly/react-core";
import RFB from "@novnc/novnc";
import { type ReactElement, useEffect, useRef, useState } from "react";
import { words } from "../components/notices";
import { CHORDS, type Key, MODIFIERS, type Stroke, together, typing } from "./keys";
import { consoleUrl } from "./ticket";
import { t } from "../i18n";

const KEY_PAUSE_MS = 15;

function press(rfb: RFB, strokes: readonly Stroke[]): void {
  for (const { keysym, code, down } of strokes) rfb.sendKey(keysym, code, down);
}

async function type(rfb: RFB, text: string): Promise<void> {
  for (const strokes of typing(text)) {
    press(rfb, strokes);
    await new Promise((resolve) => setTimeout(resolve, KEY_PAUSE_MS)); // guests lose keys that come faster
  }
}

export default function DisplayConsole({ vm, name }: { vm: string; name: string }): ReactElement {
  const holder = useRef<HTMLDivElement>(null);
  const rfb = useRef<RFB | null>(null);
  const [status, setStatus] = useState(() => t("Opening …"));
  const [closed, setClosed] = useState(false);
  const [attempt, setAttempt] = useState(0);
  const [text, setText] = useState("");

  useEffect(() => {
    let ended = false;
    const connect = async (): Promise<void> => {
      try {
        const url = await consoleUrl(vm, "display");
        if (ended || holder.current === null) return;
        const display = new RFB(holder.current, url, { wsProtocols: ["binary"] });
        display.scaleViewport = true;
        display.background = "transparent";
        display.addEventListener("connect", () => setStatus(t("Connected. Click into the picture to type.")));
        display.addEventListener("disconnect", (event) => {
          const clean = (event as CustomEvent<{ clean: boolean }>).detail.clean;
          setStatus(clean ? t("Closed.") : t("Closed: the connection was lost."));
          setClosed(true);
          if (rfb.current === display) rfb.current = null; // it can't be disconnected again
        });
        rfb.current = display;
      } catch (error) {
        setStatus(t("Closed: {why}", { why: words(error).text }));
        setClosed(true);
      }
    };
    setStatus(t("Opening …"));
    setClosed(false);
    void connect();
    return () => {
      ended = true;
      if (rfb.current !== null) press(rfb.current, MODIFIERS.map(([, key]) => ({ ...key, down: false }))); // a guest keeps holding what nobody releases
      rfb.current?.disconnect();
      rfb.current = null;
    };
  }, [vm, attempt]);

  const send = (strokes: readonly Stroke[]): void => {
    if (rfb.current !== null) press(rfb.current, strokes);
  };
  return (
    <section aria-label={t("Display of {name}", { name })} className="nc-console">
      <div className="nc-console-bar">
        <span role="status">{status}</span>
        {closed && (
          <Button variant="secondary" size="sm" onClick={() => setAttempt(attempt + 1)}>
            {t("Open again")}
          </Button>
        )}
        <Keys key={attempt} send={send} isDisabled={closed} />
        <Button variant="secondary" size="sm" onClick={() => void holder.current?.requestFullscreen()}>
          {t("Full screen")}
        </Button>
        <TextArea
          rows={1}
          resizeOrientation="vertical"
          aria-label={t("Text to type into the guest")}
          placeholder={t("Text to type into the guest")}
          value={text}
          onChange={(_, value) => setText(value)}
          className="nc-typed"
        />
        <Button
          variant="secondary"
          size="sm"
          isDisabled={closed || text === ""}
          onClick={() => rfb.current !== null && void type(rfb.current, text)}
        >
          {t("Type it")}
        </Button>
      </div>
      <div ref={holder} className="nc-display" />
    </section>
  );
}

/** Keys that a browser keeps for itself: pressed together, or held down while others are typed into the picture. */
function Keys({ send, isDisabled }: { send: (strokes: readonly Stroke[]) => void; isDisabled: boolean }): ReactElement {
  const [held, setHeld] = useState<readonly string[]>([]);
  const toggle = (name: string, key: Key): void => {
    const down = !held.includes(name);
    send([{ ...key, down }]);
    setHeld(down ? [...held, name] : held.filter((one) => one !== name));
  };
  const chord = (name: string): void => {
    send(together(CHORDS.get(name) ?? []));
    setHeld([]); // it released those that it has, and a guest should hold none that the page does not show
    send(MODIFIERS.filter(([one]) => held.includes(one)).map(([, key]) => ({ ...key, down: false })));
  };
  return (
    <>
      <Button variant="secondary" size="sm" isDisabled={isDisabled} onClick={() => chord("Ctrl-Alt-Del")}>
        {t("Ctrl-Alt-Del")}
      </Button>
      <FormSelect className="nc-keys-menu" aria-label={t("Send keys")} value="" isDisabled={isDisabled} onChange={(_, name) => chord(name)}>
        <FormSelectOption value="" label={t("Send keys")} />
        {[...CHORDS.keys()].map((name) => (
          <FormSelectOption key={name} value={name} label={name} />
        ))}
      </FormSelect>
      <span role="group" aria-label={t("Hold a key down")} className="nc-operations">
        {MODIFIERS.map(([name, key]) => (
          <Button key={name} variant={held.includes(name) ? "primary" : "control"} size="sm" aria-pressed={held.includes(name)} isDisabled={isDisabled} onClick={() => toggle(name, key)}>
            {name}
          </Button>
        ))}
      </span>
    </>
  );
}
