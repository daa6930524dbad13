/** A secret that is shown once, and is nowhere else. */
import type { ReactElement } from "react";
import { t } from "../i18n";

export function Secret({ children }: { children: string }): ReactElement {
  return (
    <>
      <p>{t("Keep it now: it is not shown again.")}</p>
      <code className="nc-command">{children}</code>
    </>
  );
}
