/** Who is logged in. The session itself is a cookie that scripts cannot read. */
import { useSyncExternalStore } from "react";
import { ApiError, answered, client, type Me, type SecondFactorStep, setCsrf } from "./api";
import { m } from "./i18n";

export type Session =
  | { state: "asking" }
  | { state: "out"; reason: string | null }
  /** The page was opened with a link that logs its user in, once. */
  | { state: "link"; secret: string }
  | { state: "second-factor"; step: SecondFactorStep }
  | { state: "in"; me: Me }
  /** The session has ended while a page was open: it stays, and is usable again after a login. */
  | { state: "ended"; me: Me; step: SecondFactorStep | null };

let session: Session = { state: "asking" };
const listeners = new Set<() => void>();

function become(next: Session): void {
  session = next;
  listeners.forEach((heard) => heard());
}

/** Whose page this is; empty: nobody's yet. */
export function userName(): string {
  return session.state === "in" || session.state === "ended" ? session.me.user : "";
}

export function isLoggedIn(): boolean {
  return session.state === "in";
}

export function useSession(): Session {
  return useSyncExternalStore(
    (heard) => {
      listeners.add(heard);
      return () => listeners.delete(heard);
    },
    () => session,
  );
}

const LINK = "#login=";

/** Find out who is logged in in this browser, or with which link somebody wants to. */
export async function restore(): Promise<void> {
  if (location.hash.startsWith(LINK)) {
    const secret = location.hash.slice(LINK.length);
    history.replaceState(null, "", location.pathname + location.search); // neither the history nor a bookmark has it
    become({ state: "link", secret });
    return;
  }
  try {
    await enter();
  } catch (error) {
    const known = error instanceof ApiError && error.status === 401;
    become({ state: "out", reason: known ? null : error instanceof Error ? error.message : String(error) });
  }
}

async function enter(): Promise<void> {
  const me = await answered(client.GET("/api/v1/me"));
  setCsrf(me.csrf ?? "");
  // What is on the page, and in the store, is another user's: begin with nothing.
  if (session.state === "ended" && session.me.user !== me.user) location.reload();
  else become({ state: "in", me });
}

function ask(step: SecondFactorStep): void {
  become(session.state === "ended" ? { ...session, step } : { state: "second-factor", step });
}

/** Log in. Throws ApiError. */
export async function login(user: string, password: string): Promise<void> {
  const answer = await answered(client.POST("/api/v1/login", { body: { user, password } }));
  if ("step" in answer) ask(answer);
  else await enter();
}

/** Log in with a link. Throws ApiError. */
export async function loginWithLink(secret: string): Promise<void> {
  const answer = await answered(client.POST("/api/v1/login/link", { body: { secret } }));
  if ("step" in answer) ask(answer);
  else await enter();
}

/** Complete a login. Throws ApiError. */
export async function secondFactor(
  step: SecondFactorStep,
  proof: { code: string } | { recovery_code: string } | { credential: Record<string, unknown> },
): Promise<void> {
  await answered(client.POST("/api/v1/login/second-factor", { body: { step: step.step, ...proof } }));
  await enter();
}

/** Ask the browser for a security key's answer. */
export async function securityKey(step: SecondFactorStep): Promise<Record<string, unknown>> {
  const publicKey = PublicKeyCredential.parseRequestOptionsFromJSON(
    step.webauthn as unknown as PublicKeyCredentialRequestOptionsJSON,
  );
  const credential = (await navigator.credentials.get({ publicKey })) as PublicKeyCredential | null;
  if (credential === null) throw new Error("the browser gave no answer of a security key");
  return credential.toJSON() as Record<string, unknown>;
}

export async function logout(): Promise<void> {
  try {
    await answered(client.POST("/api/v1/logout"));
  } finally {
    location.assign("/ui/"); // nothing of what was shown stays in memory
  }
}

/** The server has ended the session, or it has expired. */
export function sessionEnded(): void {
  if (session.state === "in") become({ state: "ended", me: session.me, step: null });
}

/** Say whether the caller has a right in a project; null: everywhere. */
export function may(me: Me, right: Me["everywhere"][number], project: string | null): boolean {
  return me.everywhere.includes(right) || (project !== null && (me.projects[project]?.includes(right) ?? false));
}

/** Why the caller can't do something; null: they can. */
export function refusalFor(me: Me, right: Me["everywhere"][number], project: string | null = null): string | null {
  return may(me, right, project) ? null : m("Your role does not allow it.");
}
