// Fails when the first page needs more script than was promised (SPECIFICATION.md).
import { readFileSync, statSync } from "node:fs";

const BYTES_MAX = 250_000;
const OUT = new URL("../src/novacron/api/ui/", import.meta.url);
const page = readFileSync(new URL("index.html", OUT), "utf8");
const names = [...page.matchAll(/(?:src|href)="\/ui\/(assets\/[^"]+\.js)"/g)].map((match) => match[1]);
const bytes = names.map((name) => statSync(new URL(`${name}.br`, OUT)).size).reduce((sum, size) => sum + size, 0);
console.log(`the first page's script: ${bytes} bytes, compressed`);
if (names.length === 0 || bytes > BYTES_MAX) {
  console.error(`web: more than ${BYTES_MAX} bytes, or none`);
  process.exit(1);
}
