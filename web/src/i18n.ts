/** Texts in the reader's language. The English text is its own key; messages/en.json lists them all for translators. */

type Catalogue = Record<string, string>;

const LANGUAGES = import.meta.glob<Catalogue>(["../messages/*.json", "!../messages/en.json"], { import: "default" });
let catalogue: Catalogue = {};

const FROM_RIGHT = new Set(["ar", "ckb", "dv", "fa", "he", "ps", "sd", "ug", "ur", "yi"]);

/** Where lines of a language begin. */
export function directionOf(language: string): "ltr" | "rtl" {
  return FROM_RIGHT.has(language) ? "rtl" : "ltr";
}

/** Load the catalogue of the first of these languages that there is; English needs none. */
export async function speak(languages: readonly string[]): Promise<void> {
  for (const language of languages) {
    const name = language.split("-")[0] ?? "en";
    if (name === "en") return;
    const load = LANGUAGES[`../messages/${name}.json`];
    if (load === undefined) continue;
    use(await load());
    document.documentElement.lang = name;
    document.documentElement.dir = directionOf(name);
    return;
  }
}

export function use(translations: Catalogue): void {
  catalogue = translations;
}

/** The text in the reader's language, with `{name}` replaced by each value. */
export function t(text: string, values: Record<string, string | number> = {}): string {
  const said = catalogue[text] || text;
  return said.replace(/\{(\w+)\}/g, (whole, name: string) => String(values[name] ?? whole));
}

/** Marks a text that is translated where it is shown. */
export function m(text: string): string {
  return text;
}
