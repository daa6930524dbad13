/** Everything that the API can do has a place in the web UI, or a written reason why not. */
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

interface Operation {
  operationId: string;
}

const reasons = JSON.parse(readFileSync("operations-without-a-page.json", "utf8")) as Record<string, string>;
const document = JSON.parse(readFileSync("../docs/reference/openapi.json", "utf8")) as { paths: Record<string, Record<string, Operation>> };
const METHODS = ["get", "put", "post", "patch", "delete"];
const operations = Object.entries(document.paths).flatMap(([path, item]) =>
  Object.entries(item)
    .filter(([method]) => METHODS.includes(method))
    .map(([method, { operationId }]) => ({ id: operationId, method: method.toUpperCase(), path })),
);

const source = readdirSync("src", { recursive: true, encoding: "utf8" })
  .filter((name) => /\.tsx?$/.test(name) && !name.endsWith(".test.ts") && !name.startsWith("generated"))
  .map((name) => readFileSync(join("src", name), "utf8"))
  .join("\n");

function isUsed(method: string, path: string): boolean {
  const opened = method === "GET" && (source.includes(`href="${path}"`) || source.includes(`wss://\${location.host}${path}?`));
  return opened || source.includes(`client.${method}("${path}"`);
}

describe("the API's operations", () => {
  it.each(operations)("$method $path ($id) has a page or a reason", ({ id, method, path }) => {
    const reason = reasons[id];
    expect(isUsed(method, path) || reason !== undefined, "call it in web/src, or say why not in web/operations-without-a-page.json").toBe(true);
    expect(isUsed(method, path) && reason !== undefined, "it has a page: remove its reason").toBe(false);
  });

  it("have no reason that is about nothing", () => {
    const known = new Set(operations.map(({ id }) => id));
    expect(Object.keys(reasons).filter((id) => !known.has(id))).toEqual([]);
    expect(Object.values(reasons).filter((reason) => reason.length < 20)).toEqual([]);
  });
});
