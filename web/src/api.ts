/** The API's client, with types made from the OpenAPI document: what the server does not offer does not compile. */
import createClient, { type Middleware } from "openapi-fetch";
import type { components, paths } from "./generated/api";

export type Schemas = components["schemas"];
export type Vm = Schemas["Vm"];
export type VmState = Schemas["VmState"];
export type CreateVm = Schemas["CreateVm"];
export type Node = Schemas["Node"];
export type Migration = Schemas["Migration"];
export type MigrationPhase = Schemas["MigrationPhase"];
export type Image = Schemas["Image"];
export type Network = Schemas["Network"];
export type Volume = Schemas["Volume"];
export type VolumePhase = Schemas["VolumePhase"];
export type Event = Schemas["Event"];
export type Backup = Schemas["Backup"];
export type BackupPhase = Schemas["BackupPhase"];
export type BackupPolicy = Schemas["BackupPolicy"];
export type BackupRepository = Schemas["BackupRepository"];
export type Plan = Schemas["Plan"];
export type Replica = Schemas["Replica"];
export type Drain = Schemas["Drain"];
export type DrillRun = Schemas["DrillRun"];
export type Export = Schemas["Export"];
export type Flavor = Schemas["Flavor"];
export type FloatingAddress = Schemas["FloatingAddress"];
export type Forward = Schemas["Forward"];
export type Import = Schemas["Import"];
export type Link = Schemas["Link"];
export type Project = Schemas["Project"];
export type SecurityGroup = Schemas["SecurityGroup"];
export type Snapshot = Schemas["Snapshot"];
export type Template = Schemas["Template"];
export type UnreconciledVm = Schemas["UnreconciledVm"];
export type EventPage = Schemas["EventList"];
export type Me = Schemas["Me"];
export type Problem = Schemas["Problem"];
export type SecondFactorStep = Schemas["SecondFactorStep"];
export type Verdict = Schemas["Verdict"];

/** What the API refused, in its own words. */
export class ApiError extends Error {
  readonly status: number;
  readonly code: string;
  readonly field: string | null;
  readonly hint: string | null;

  constructor(problem: Partial<Problem> & { status: number }) {
    super(problem.detail ?? `the server answered with status ${problem.status}`);
    this.status = problem.status;
    this.code = problem.code ?? "unknown";
    this.field = problem.field ?? null;
    this.hint = problem.hint || null;
  }
}

/** No answer came at all. */
export class NoAnswer extends Error {
  constructor(cause: unknown) {
    super("the server does not answer", { cause });
  }
}

/** The value that the server demands with changes; only in memory, never in the browser's storage. */
let csrf = "";
let onSessionEnded: () => void = () => undefined;

export function setCsrf(value: string): void {
  csrf = value;
}

export function whenSessionEnds(heard: () => void): void {
  onSessionEnded = heard;
}

const WITHOUT_SESSION = ["/api/v1/login", "/api/v1/login/second-factor", "/api/v1/me"];

const session: Middleware = {
  onRequest({ request }) {
    if (request.method !== "GET") request.headers.set("X-CSRF-Token", csrf);
    return request;
  },
  onResponse({ response, schemaPath }) {
    if (response.status === 401 && !WITHOUT_SESSION.includes(schemaPath)) onSessionEnded();
  },
  onError({ error }) {
    return new NoAnswer(error);
  },
};

export const client = createClient<paths>({ credentials: "same-origin" });
client.use(session);

interface Answered<T> {
  data?: T | undefined;
  error?: unknown;
  response: Response;
}

/** Return what a call answered with. Throws ApiError, NoAnswer. */
export async function answered<T>(call: Promise<Answered<T>>): Promise<T> {
  const { data, error, response } = await call;
  if (!response.ok) throw new ApiError({ ...(error as Partial<Problem>), status: response.status });
  return data as T;
}
