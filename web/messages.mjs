// Lists every text that people read in messages/en.json, for translators; --check: fails when the list is not that, or
// when a text is not to be translated.
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import ts from "typescript";

const LIST = "messages/en.json";
/** Attributes of elements, and nothing else, that people read. */
const READ = new Set(["aria-label", "title", "label", "placeholder", "alt", "empty", "titleText"]);
/** Properties of what is written down as data, and shown translated. */
const SHOWN = new Set(["title", "label", "help", "warning", "empty"]);
const found = new Set();
const complaints = [];

function literal(node) {
  return node !== undefined && (ts.isStringLiteral(node) || ts.isNoSubstitutionTemplateLiteral(node)) ? node.text : null;
}

function look(node, source) {
  const complain = (text) => {
    const { line } = source.getLineAndCharacterOfPosition(node.getStart(source));
    complaints.push(`${source.fileName}:${line + 1}: ${JSON.stringify(text)} is not translated: use t(), or m() where it is not shown yet`);
  };
  if (ts.isCallExpression(node) && ts.isIdentifier(node.expression) && ["t", "m"].includes(node.expression.text)) {
    const text = literal(node.arguments[0]);
    if (text !== null) found.add(text);
  } else if (ts.isJsxText(node) && /\p{L}/u.test(node.text)) {
    complain(node.text.trim());
  } else if (ts.isJsxAttribute(node) && READ.has(node.name.getText(source)) && node.initializer !== undefined) {
    const text = literal(node.initializer) ?? literal(node.initializer.expression);
    if (text !== null && /\p{L}/u.test(text)) complain(text);
  } else if (ts.isPropertyAssignment(node) && SHOWN.has(node.name.getText(source))) {
    const text = literal(node.initializer);
    if (text !== null && /\p{L}/u.test(text)) complain(text);
  }
  ts.forEachChild(node, (child) => look(child, source));
}

for (const name of readdirSync("src", { recursive: true, encoding: "utf8" }).sort()) {
  if (!/\.tsx?$/.test(name) || /\.test\.tsx?$/.test(name) || name.startsWith("generated")) continue;
  const path = join("src", name);
  const source = ts.createSourceFile(path, readFileSync(path, "utf8"), ts.ScriptTarget.Latest, true);
  look(source, source);
}
const list = `${JSON.stringify(Object.fromEntries([...found].sort().map((text) => [text, text])), null, 2)}\n`;
if (!process.argv.includes("--check")) writeFileSync(LIST, list);
else if (readFileSync(LIST, "utf8") !== list) complaints.push(`${LIST} is out of date: npm run messages`);
if (complaints.length > 0) {
  console.error(complaints.join("\n"));
  process.exit(1);
}
