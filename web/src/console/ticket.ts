/** Tickets of consoles: each opens one WebSocket, within a minute. */
import { answered, client } from "../api";

export const CLOSE_ENDED = 4401;
export const CLOSE_REFUSED = 4409;
export const RETRY_MS = [500, 1_000, 2_000, 4_000, 8_000] as const;

export async function consoleUrl(vm: string, kind: "serial" | "display"): Promise<string> {
  const call = client.POST("/api/v1/vms/{ref}/actions/open-console", { params: { path: { ref: vm } }, body: { kind } });
  const { path } = await answered(call);
  return `wss://${location.host}${path}`;
}
