/** Keeps the rest of the page when a part of it can't be shown, and says so. */
import { Alert, Button } from "@patternfly/react-core";
import { Component, type ReactNode } from "react";
import { report } from "../errors";
import { t } from "../i18n";

interface State {
  error: unknown;
  id: string | null;
}

export class Boundary extends Component<{ children: ReactNode }, State> {
  override state: State = { error: null, id: null };

  static getDerivedStateFromError(error: unknown): Partial<State> {
    return { error: error ?? new Error("unknown") };
  }

  override componentDidCatch(error: unknown): void {
    void report(error).then((id) => this.setState({ id }));
  }

  override render(): ReactNode {
    const { error, id } = this.state;
    if (error === null) return this.props.children;
    return (
      <Alert isInline variant="danger" title={t("This part of the page can't be shown")}>
        <p>{error instanceof Error ? error.message : String(error)}</p>
        {id !== null && <p>{t("It was reported to the server, whose log has it as {id}.", { id })}</p>}
        <Button variant="secondary" onClick={() => this.setState({ error: null, id: null })}>
          {t("Try again")}
        </Button>
      </Alert>
    );
  }
}
