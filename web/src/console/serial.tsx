/** The serial console: a terminal on a ticketed WebSocket. */
import { Button } from "@patternfly/react-core";
import { FitAddon } from "@xterm/addon-fit";
import { Terminal } from "@xterm/xterm";
import "@xterm/xterm/css/xterm.css";
import { type ReactElement, useEffect, useRef, useState } from "react";
import { words } from "../components/notices";
import { withConstructedStyles } from "./styles";
import { CLOSE_ENDED, CLOSE_REFUSED, consoleUrl, RETRY_MS } from "./ticket";
import { t } from "../i18n";

/** A guest may print faster than a page can show: beyond this, output is left out, and the console says so. */
const WAITING_BYTES_MAX = 2 * 1024 * 1024;
const SCROLLBACK_LINES = 5_000;

type Status = { state: "opening" | "open" } | { state: "closed"; why: string };

/** Connects a terminal to a console, and again when the connection is lost, until it is ended. */
class Line {
  private socket: WebSocket | null = null;
  private ended = false;
  private tries = 0;
  private waiting = 0;
  private skipped = 0;
  private retry: ReturnType<typeof setTimeout> | undefined;
  private readonly encoder = new TextEncoder();
  private readonly vm: string;
  private readonly terminal: Terminal;
  private readonly changed: (status: Status) => void;

  constructor(vm: string, terminal: Terminal, changed: (status: Status) => void) {
    this.vm = vm;
    this.terminal = terminal;
    this.changed = changed;
  }

  async open(): Promise<void> {
    this.changed({ state: "opening" });
    try {
      const url = await consoleUrl(this.vm, "serial");
      if (this.ended) return;
      this.attach(new WebSocket(url));
    } catch (error) {
      this.changed({ state: "closed", why: words(error).text });
    }
  }

  send(text: string): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(this.encoder.encode(text));
  }

  end(): void {
    this.ended = true;
    clearTimeout(this.retry);
    this.socket?.close();
  }

  private attach(socket: WebSocket): void {
    this.socket = socket;
    socket.binaryType = "arraybuffer";
    socket.onopen = () => this.changed({ state: "open" });
    socket.onmessage = ({ data }) => this.show(new Uint8Array(data as ArrayBuffer));
    socket.onclose = ({ code, reason }) => this.closed(code, reason);
  }

  private show(data: Uint8Array): void {
    this.tries = 0;
    if (this.waiting > WAITING_BYTES_MAX) {
      this.skipped += data.length;
      return;
    }
    if (this.skipped > 0) {
      this.terminal.write(`\r\n[${t("{count} bytes were left out: the guest prints faster than this page shows", { count: this.skipped })}]\r\n`);
      this.skipped = 0;
    }
    this.waiting += data.length;
    this.terminal.write(data, () => {
      this.waiting -= data.length;
    });
  }

  private closed(code: number, reason: string): void {
    if (this.ended) return;
    this.changed({ state: "closed", why: reason || t("the connection was lost") });
    const lost = code !== CLOSE_ENDED && code !== CLOSE_REFUSED && code !== 1000;
    const delay = RETRY_MS[this.tries++];
    if (lost && delay !== undefined) this.retry = setTimeout(() => void this.open(), delay);
  }
}

export default function SerialConsole({ vm, name }: { vm: string; name: string }): ReactElement {
  const holder = useRef<HTMLDivElement>(null);
  const line = useRef<Line | null>(null);
  const [status, setStatus] = useState<Status>({ state: "opening" });
  const [attempt, setAttempt] = useState(0);

  useEffect(() => {
    const element = holder.current;
    if (element === null) return undefined;
    const terminal = new Terminal({
      scrollback: SCROLLBACK_LINES,
      cursorBlink: true,
      fontFamily: "monospace",
      fontSize: 14,
      screenReaderMode: true,
    });
    const fit = new FitAddon();
    terminal.loadAddon(fit);
    withConstructedStyles(() => terminal.open(element));
    fit.fit();
    const current = new Line(vm, terminal, setStatus);
    line.current = current;
    terminal.onData((text) => current.send(text));
    void current.open();
    terminal.focus();
    const resized = new ResizeObserver(() => fit.fit());
    resized.observe(element);
    return () => {
      resized.disconnect();
      current.end();
      terminal.dispose();
    };
  }, [vm, attempt]);

  return (
    <section aria-label={t("Serial console of {name}", { name })} className="nc-console">
      <div className="nc-console-bar" role="status">
        {status.state === "open" && <span>{t("Connected. What you type goes to the guest.")}</span>}
        {status.state === "opening" && <span>{t("Opening …")}</span>}
        {status.state === "closed" && (
          <>
            <span>{t("Closed: {why}", { why: status.why })}</span>
            <Button variant="secondary" size="sm" onClick={() => setAttempt(attempt + 1)}>
              {t("Open again")}
            </Button>
          </>
        )}
      </div>
      <div ref={holder} className="nc-terminal" data-testid="terminal" />
    </section>
  );
}
