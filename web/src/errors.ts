/** Errors of this page's own scripts: the reader sees that there was one, and the server's log has what it was, under an id that both know. */
import { ApiError, answered, client, NoAnswer } from "./api";
import { failed } from "./components/notices";
import { t } from "./i18n";
import { Reported, reportOf } from "./reported";
import { isLoggedIn } from "./session";

const reported = new Reported();

/** Report an error; return the id under which the server's log has it, or null if it has not. */
export async function report(error: unknown): Promise<string | null> {
  const body = reportOf(error, location.pathname);
  if (!isLoggedIn() || !reported.isNew(body.message)) return null;
  try {
    return (await answered(client.POST("/api/v1/page-errors", { body }))).id;
  } catch {
    return null; // the page says what happened anyway
  }
}

async function happened(error: unknown): Promise<void> {
  if (error instanceof ApiError || error instanceof NoAnswer) return; // who asked has been told
  const id = await report(error);
  if (id !== null) failed(t("Something in this page failed"), t("It was reported to the server, whose log has it as {id}.", { id }));
}

/** Report whatever nobody else takes care of. */
export function reportErrors(): void {
  window.addEventListener("error", ({ error }) => {
    if (error != null) void happened(error);
  });
  window.addEventListener("unhandledrejection", ({ reason }) => void happened(reason));
}
