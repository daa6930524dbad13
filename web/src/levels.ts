/** How much is logged. */
import type { Schemas } from "./api";

export const LEVELS = Object.keys({ debug: true, info: true, warning: true, error: true } satisfies Record<Schemas["Level"], true>);
