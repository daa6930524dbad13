/**
 * Lets xterm obey the content security policy.
 *
 * xterm makes `<style>` elements and `style` attributes while it runs, which the policy forbids, as it should. What scripts
 * say through the CSS object model is allowed. So the elements that it makes while it opens are empty ones whose text goes
 * into constructed style sheets, and the attributes of its spans (colours that a guest chose) are set as properties.
 */
HTMLSpanElement.prototype.setAttribute = function setAttribute(name: string, value: string): void {
  if (name === "style") this.style.cssText = value;
  else Element.prototype.setAttribute.call(this, name, value);
};

function styleElement(create: (tag: string) => HTMLElement): HTMLElement {
  const element = create("span");
  element.hidden = true;
  const sheet = new CSSStyleSheet();
  document.adoptedStyleSheets.push(sheet);
  Object.defineProperty(element, "textContent", { set: (text: string) => sheet.replaceSync(text) });
  element.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((other) => other !== sheet);
    Element.prototype.remove.call(element);
  };
  return element;
}

/** Do something at once, and let the style elements that it makes obey the policy. */
export function withConstructedStyles(act: () => void): void {
  const create = document.createElement.bind(document) as (tag: string) => HTMLElement;
  const replaced = (tag: string): HTMLElement => (tag === "style" ? styleElement(create) : create(tag));
  Object.defineProperty(document, "createElement", { value: replaced, configurable: true, writable: true });
  try {
    act();
  } finally {
    Reflect.deleteProperty(document, "createElement"); // the prototype's own is there again
  }
}
