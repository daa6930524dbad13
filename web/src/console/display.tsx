/** The display: VNC on a ticketed WebSocket. */
import { Button, TextInput } from "@patternfly/react-core";
import RFB from "@novnc/novnc";
import { type ReactElement, useEffect, useRef, useState } from "react";
import { words } from "../components/notices";
import { consoleUrl } from "./ticket";
import { t } from "../i18n";

const TYPED_MAX = 4_000;
const KEY_PAUSE_MS = 15;
const RETURN_KEYSYM = 0xff0d;
const UNICODE_KEYSYMS = 0x0100_0000;

/** The X11 keysym of a character. */
export function keysymOf(character: string): number {
  if (character === "\n") return RETURN_KEYSYM;
  const point = character.codePointAt(0) ?? 0;
  return point < 0x100 ? point : UNICODE_KEYSYMS + point;
}

async function type(rfb: RFB, text: string): Promise<void> {
  for (const character of text.slice(0, TYPED_MAX)) {
    rfb.sendKey(keysymOf(character), null);
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
      rfb.current?.disconnect();
      rfb.current = null;
    };
  }, [vm, attempt]);

  return (
    <section aria-label={t("Display of {name}", { name })} className="nc-console">
      <div className="nc-console-bar">
        <span role="status">{status}</span>
        {closed && (
          <Button variant="secondary" size="sm" onClick={() => setAttempt(attempt + 1)}>
            {t("Open again")}
          </Button>
        )}
        <Button variant="secondary" size="sm" isDisabled={closed} onClick={() => rfb.current?.sendCtrlAltDel()}>
          {t("Ctrl-Alt-Del")}
        </Button>
        <Button variant="secondary" size="sm" onClick={() => void holder.current?.requestFullscreen()}>
          {t("Full screen")}
        </Button>
        <TextInput
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
